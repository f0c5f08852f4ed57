"""Plug-ins for other evaluation frameworks; each module is imported only by its framework."""

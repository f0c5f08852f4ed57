"""Asks a vision-language model the questions of a release, with its blind control, and keeps every answer."""

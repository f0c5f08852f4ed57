"""Captions, and the atomic features that a model finds in them."""

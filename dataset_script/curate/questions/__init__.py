"""Drafts by a model, options by our code."""

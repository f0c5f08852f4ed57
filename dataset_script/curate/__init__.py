"""Curation: from expert captions to questions that need the images."""

"""``make learn``: a small model that learns to look, and its twin that learns to read the options instead."""

"""Chat roles of the curation: what is asked of which endpoint, and how replies are read."""

"""Clinical validation: a page on loopback where two pathologists judge each question, and what comes of it."""

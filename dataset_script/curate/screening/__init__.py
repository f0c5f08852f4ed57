"""Readers without images, the rule by which a question is made again, and the rounds."""

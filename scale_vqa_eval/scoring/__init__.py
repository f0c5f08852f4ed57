"""Scores and compares predictions, and makes the tables and plots of a report."""

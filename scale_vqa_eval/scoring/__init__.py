"""Joins runs into the tables and plots of a paper."""

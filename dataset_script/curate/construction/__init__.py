"""Letters, duplicates, contradictions, the release folder, its audit and the report."""

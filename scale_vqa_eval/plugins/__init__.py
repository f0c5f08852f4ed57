"""The questions inside of other evaluation frameworks; each module needs its framework and is imported by it alone."""

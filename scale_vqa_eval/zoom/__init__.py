"""Models that choose where to look on a slide: the environment, its questions, the exam and its score."""

"""Publishing to the Hub: a plan, a scan, one commit, a tag, and the proof that it loads."""

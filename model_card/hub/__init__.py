"""Publishing to the Hub: scan, plan, one commit, a tag, and a check that the release loads."""

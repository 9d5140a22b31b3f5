"""The saga of one change, pure: facts in, facts out."""

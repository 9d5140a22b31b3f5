"""The story that a newcomer sees."""

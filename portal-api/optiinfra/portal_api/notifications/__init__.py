"""Tells people and systems what has happened."""

"""Figures that the pages show, worked out of what the stores hold; unknown stays unknown."""

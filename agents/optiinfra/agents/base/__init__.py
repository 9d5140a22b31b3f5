"""The base part of the agents."""

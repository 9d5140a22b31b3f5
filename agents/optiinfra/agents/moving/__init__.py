"""The moving part of the agents."""

"""The performance part of the agents."""

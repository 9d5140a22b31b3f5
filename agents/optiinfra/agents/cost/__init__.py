"""The cost part of the agents."""

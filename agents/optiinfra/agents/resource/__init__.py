"""The resource part of the agents."""

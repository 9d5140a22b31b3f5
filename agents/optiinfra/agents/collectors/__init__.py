"""The collectors part of the agents."""

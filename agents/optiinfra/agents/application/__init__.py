"""The application part of the agents."""

"""The actuators part of the agents."""

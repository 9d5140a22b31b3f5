"""A fleet in simulation: an engine emulator, and replays of traces under a policy."""

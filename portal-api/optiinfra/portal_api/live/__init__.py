"""The live stream: one feed, one ring, one cursor a client."""

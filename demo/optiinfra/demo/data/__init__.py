"""The trace that the demo replays."""

"""Measurements, each beside a limit or a peer in one run."""

"""How traffic reaches the replicas: split by weight, drain, tap for quality."""

"""Who shows it: the API and its live stream."""

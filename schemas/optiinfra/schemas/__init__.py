"""What everyone speaks in: frozen values without I/O, clock or client library."""

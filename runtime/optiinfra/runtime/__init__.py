"""How processes are put together: settings, wiring, the command line."""

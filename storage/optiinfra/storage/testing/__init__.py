"""What tests need of real stores: servers, and a fresh database each."""

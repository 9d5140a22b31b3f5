"""The local servers: real NATS and PostgreSQL as children, the other stores in process."""

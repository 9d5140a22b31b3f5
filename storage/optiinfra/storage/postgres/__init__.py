"""PostgreSQL: the truth. Event log, sagas, inbox, outbox and their projections."""

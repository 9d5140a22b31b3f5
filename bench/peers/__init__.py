"""Other systems for durable workflows, each driven through the same saga."""

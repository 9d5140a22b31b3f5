"""Who notices, proposes, votes and executes; agents never import one another."""

"""Making existing models fast in place."""

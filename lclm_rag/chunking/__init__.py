"""Documents → passages."""

"""Clients in a few lines each. docs/clients.md shows these files, and the matrix of clients runs them."""

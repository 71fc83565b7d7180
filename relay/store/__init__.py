"""Durable storage: the history and the dedup keys in one file."""

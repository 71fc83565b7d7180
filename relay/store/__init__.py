"""The disk: history and dedup keys in one file."""

"""A token in, a grant out."""

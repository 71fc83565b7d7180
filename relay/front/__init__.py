"""A connection until it is a stream."""

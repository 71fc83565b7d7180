"""The wire formats of streams, which turn entries of the log into bytes of a response body."""

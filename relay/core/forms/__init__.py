"""The wire formats of streams: how an entry of the log becomes bytes of a response body."""

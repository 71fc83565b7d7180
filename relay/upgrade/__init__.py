"""One process replaces another without closing a stream."""

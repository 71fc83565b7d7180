"""Many machines, one log: each node follows the log of a broker and publishes to it."""

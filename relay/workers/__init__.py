"""Several processes with one log: the hub, its edges (workers and other relays) and the links between them."""

"""Several processes with one log: the hub, its workers and the links between them."""

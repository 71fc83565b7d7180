"""Several processes, one log: the links between a hub and its edges."""

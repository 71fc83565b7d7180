"""The checks of `relay doctor`: the machine, the disk, the broker, and the path from a client to relay."""

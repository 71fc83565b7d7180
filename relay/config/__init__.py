"""The settings: what there is, and how flags, environment and file become one object."""

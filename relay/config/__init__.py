"""The settings: their definitions, and the conversion of flags, environment and file into one object."""

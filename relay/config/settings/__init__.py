"""All settings, one module for each group of `relay serve --help`."""

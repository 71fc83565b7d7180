"""Programs for developers of relay; they are not installed."""

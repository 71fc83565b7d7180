"""The commands other than `serve`, one per module: clients of a relay, and the demo. Never serve streams."""

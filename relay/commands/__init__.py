"""The commands other than `serve`: clients of a relay, and the demo. One module per command. None serves streams."""

"""The commands beside `serve`: clients of a relay, and the demo. Each owns one; none serves streams."""

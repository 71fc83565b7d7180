"""Assembly: start, serve, end."""

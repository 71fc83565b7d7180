"""Connections before they become streams."""

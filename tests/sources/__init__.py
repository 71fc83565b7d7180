"""Tests of relay.sources."""

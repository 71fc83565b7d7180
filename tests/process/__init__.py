"""Tests of relay.process."""

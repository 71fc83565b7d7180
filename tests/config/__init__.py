"""Tests of relay.config."""

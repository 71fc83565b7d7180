"""Tests of relay.auth."""

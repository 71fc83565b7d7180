"""Tests of relay.commands."""

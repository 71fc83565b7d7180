"""Tests of relay.upgrade."""

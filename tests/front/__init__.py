"""Tests of relay.front."""

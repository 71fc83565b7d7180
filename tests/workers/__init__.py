"""Tests of relay.workers."""

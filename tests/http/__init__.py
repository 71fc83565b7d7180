"""Tests of relay.http."""

"""Tests of `relay.core.forms`."""

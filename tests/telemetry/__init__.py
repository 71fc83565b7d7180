"""Tests of relay.telemetry."""

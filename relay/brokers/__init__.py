"""Connections to Redis, Kafka and NATS, which clusters and sources share, and the time limit of all brokers."""

ANSWER_S = 5.0
"""Time limit of a connection attempt and of an answer, in addition to the time that the call may wait."""

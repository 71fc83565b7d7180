"""Connections to Redis, Kafka and NATS, which clusters and sources share."""

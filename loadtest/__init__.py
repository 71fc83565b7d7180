"""Load on relay: a swarm of streams, a paced publisher, and what they saw."""

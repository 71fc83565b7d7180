"""Load tests of relay: a swarm of streams, a paced publisher, and checks of every event that the streams receive."""

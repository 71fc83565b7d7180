"""The rig of load tests and benchmarks: servers under measurement, and the C programs that put load on them."""

"""The rig of load tests and benchmarks: servers, connections that can be cut, and C programs that generate load."""

"""The data path: the log, the hub and the streams; no socket, no event loop, no clock."""

"""The interfaces to the operating system: listeners and the service manager."""

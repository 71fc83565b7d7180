"""What the operating system gives: listeners and the service manager."""

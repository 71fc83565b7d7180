"""What operators see: metrics, statistics, logs and input errors."""

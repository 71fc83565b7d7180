"""HTTP/1.1 bytes, sans-IO: requests, responses and forwarded addresses."""

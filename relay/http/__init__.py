"""HTTP bytes, sans-IO: requests, responses, forwarded addresses, and the frames of HTTP/2."""

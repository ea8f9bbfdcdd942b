"""Events from beside the wire, off the request path."""

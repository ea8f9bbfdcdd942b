"""Moves bytes and understands none of them."""

"""Bytes → events; no I/O, no clock."""

"""Events → numbers."""

"""A Result in, text out."""

"""Vega-Lite specs, one per picture."""

"""Can it finish long work."""

"""Intervals, tests and fits; each cites its formula."""

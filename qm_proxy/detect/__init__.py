"""Events → findings; one small state machine per file."""

"""The harness that measures the detectors: corpora made at run time from seeds and from files of the machine, nothing stored."""

"""Statistics of small samples: intervals, robust summaries, sequential tests, fits, paired comparisons.

Rules that hold here:

- Each method names its source. SciPy does the work where it has the method; it is imported on first use, because a
  process that only serves must not pay for it.
- A proportion is shown with Wilson and judged with Clopper-Pearson; never with a normal approximation around c/n
  (at n = 20 and p = 0.95 such a "95 %" interval covers 64 % of the time).
- Nothing here knows what is being measured: numbers in, numbers out. `None` is "cannot be known", never 0.
"""

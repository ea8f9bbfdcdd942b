"""Pictures as Vega-Lite specifications, one file each, and the one place that renders them.

A file is complete but for its rows: `{"data": {"name": "rows"}}`. `render.chart` puts rows in, `render.png` and its
siblings draw. The page loads the same files and draws them itself.
"""

"""Data sets of other tools and of papers: one module for each format, and `convert` to make ours of them."""

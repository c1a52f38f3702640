"""Reports of runs and comparisons: one page that needs no network, and its tables."""

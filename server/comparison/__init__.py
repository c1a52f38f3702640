"""Comparisons: a grid of runs, their statistics, and what may be said of them."""

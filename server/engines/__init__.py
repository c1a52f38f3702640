"""Where clients run: one module for each engine."""

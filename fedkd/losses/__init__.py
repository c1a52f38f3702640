"""Losses, each a pure function in a file of its own, and the factory that finds them by name."""

"""Layouts of weight files: whose names their tensors bear, and how the network is built."""

"""Frozen teachers: where they come from, and how they are loaded and asked."""

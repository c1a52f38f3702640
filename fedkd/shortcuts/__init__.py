"""Frequency shortcuts: the mark of a scanner on images of one class."""

"""The data sets: one file each, and what some of them are made of."""

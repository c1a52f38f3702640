"""The commands of ``fedkd``."""

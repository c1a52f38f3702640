"""What frozen features are worth: nearest neighbours and linear probes, against controls."""

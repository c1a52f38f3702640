"""Pictures of runs, partitions, features, prompts and spectra."""

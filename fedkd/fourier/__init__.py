"""Fourier prompts: spectra, the prompt generator (FPG) and its exploration."""

"""What makes Fourier prompts: the generators of FPG, and controls that learn nothing."""

"""Student networks: small and torchvision backbones, and what wraps them."""

"""Federated knowledge distillation for long-tailed medical images: the parts, in plain PyTorch.

Data, partitions, models, teachers, Fourier prompts, losses, metrics and config. Nothing here knows
Flower or Ray; to run a federation, ``from server import simulate``.
"""

"""Self-supervised pre-training of a teacher: recipe, images, training, statistics, probe."""

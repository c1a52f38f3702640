"""What one hospital does: its local objective, its node and the Flower ClientApp around it."""

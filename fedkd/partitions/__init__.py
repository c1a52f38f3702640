"""Ways to divide the training images over clients, one in each file."""

"""What the model has learned by heart: attacks on its training rows, canaries."""

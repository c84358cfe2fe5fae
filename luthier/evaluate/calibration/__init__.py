"""Whether probabilities come true, and what makes them."""

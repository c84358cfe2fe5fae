"""A run's folder, runs beside each other, and a run given out."""

"""Tuning: the loop, what it optimises, and what survives a crash."""

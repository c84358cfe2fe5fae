"""Whom the model treats worse: slices, swapped genders, stereotypes."""

"""Rows that were not in the data: made, and vetted before anything learns from them."""

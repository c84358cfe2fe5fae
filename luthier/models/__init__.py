"""Models: found, described, loaded, given heads, saved."""

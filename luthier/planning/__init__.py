"""Everything that can be known before weights are loaded, and all that is wrong, told at once."""

"""Near copies of a text: found in flat memory, each pair checked."""

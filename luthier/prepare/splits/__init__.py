"""Which split each row is in, without copies, conflicts or leaks between them."""

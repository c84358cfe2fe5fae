"""One base model answering many at once, each with the adapter it asks for."""

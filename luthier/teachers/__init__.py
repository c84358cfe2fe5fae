"""Teachers: a local model or an endpoint that labels rows or writes new ones."""

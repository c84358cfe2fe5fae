"""Runs a model for everyone who needs an answer: validation, evaluation, chat, and later the server."""

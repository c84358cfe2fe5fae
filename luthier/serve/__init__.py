"""Serves a base model and many adapters of it over HTTP."""

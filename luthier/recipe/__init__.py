"""The recipe: YAML in, one typed tree out, its reference page, and a first one written for the user's own data."""

"""The verdict for people to read: a page, a model card, lines in the terminal."""

"""Side by side with peers, each contestant in a process of its own; see README.md."""

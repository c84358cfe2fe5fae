"""`luthier data`: the command line of data, and what each of its commands does, one file each."""

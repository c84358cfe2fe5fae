"""Bytes on the disk: whole files, long arrays, what is kept for the next start, archives and packages."""

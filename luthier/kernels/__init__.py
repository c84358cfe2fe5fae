"""The arithmetic that training and serving spend their time in, each fast path beside the plain version it equals."""

import os

SHAPES_KEPT = 128
"""Shapes of 16-bit products whose code oneDNN and torch keep, each in a cache of its own: those of about three
micro-batches. A shape takes up to 0.8 MB and 0.7 ms; the usual 1,024 cost 600 MB where every step has other lengths,
and spare no time there (LOG.md)."""

for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read at the first such product
    os.environ.setdefault(name, str(SHAPES_KEPT))

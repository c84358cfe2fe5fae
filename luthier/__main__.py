"""`python -m luthier` is `luthier`."""

import sys

from luthier.cli import main

sys.exit(main())

"""`python -m lossmap` is the command `lossmap`."""

import sys

from lossmap.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m jaxlr`."""

import sys

from jaxlr.lab.cli import main


if __name__ == "__main__":
    sys.exit(main())

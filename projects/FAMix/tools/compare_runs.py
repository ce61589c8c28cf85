#!/usr/bin/env python
"""Compare runs in one table: famix-compare in a clone."""

import sys

from famix_cli.compare import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Check datasets: famix-check in a clone."""

import sys

from famix_cli.check import main

if __name__ == "__main__":
    sys.exit(main())

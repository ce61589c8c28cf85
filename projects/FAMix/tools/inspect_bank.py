#!/usr/bin/env python
"""Inspect, merge and filter style banks: famix-bank in a clone."""

import sys

from famix_cli.bank import main

if __name__ == "__main__":
    sys.exit(main())

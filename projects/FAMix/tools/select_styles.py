#!/usr/bin/env python
"""Select diverse style words from a vocabulary: famix-bank select in a clone."""

import sys

from famix_cli.bank import main

if __name__ == "__main__":
    sys.exit(main(command="select"))

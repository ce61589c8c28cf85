#!/usr/bin/env python
"""Show the effect of a bank's styles on an image: famix-bank preview in a clone."""

import sys

from famix_cli.bank import main

if __name__ == "__main__":
    sys.exit(main(command="preview"))

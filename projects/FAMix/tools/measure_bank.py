#!/usr/bin/env python
"""Measure a style bank on labeled images: famix-bank measure in a clone."""

import sys

from famix_cli.bank import main

if __name__ == "__main__":
    sys.exit(main(command="measure"))

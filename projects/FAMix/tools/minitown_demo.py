#!/usr/bin/env python
"""Run FAMix in a miniature town: famix-town in a clone."""

import sys

from famix_cli.town import main

if __name__ == "__main__":
    sys.exit(main())

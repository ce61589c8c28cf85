#!/usr/bin/env python
"""Write a page about runs: famix-report in a clone."""

import sys

from famix_cli.report import main

if __name__ == "__main__":
    sys.exit(main())

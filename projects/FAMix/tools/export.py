#!/usr/bin/env python
"""Export a trained network: famix-export in a clone."""

import sys

from famix_cli.export import main

if __name__ == "__main__":
    sys.exit(main())

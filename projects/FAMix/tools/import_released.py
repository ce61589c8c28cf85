#!/usr/bin/env python
"""Convert a checkpoint or style bank of the reference implementation: famix-import in a clone."""

import sys

from famix_cli.import_released import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Upload a scored run to a model hub: famix-publish in a clone."""

import sys

from famix_cli.publish import main

if __name__ == "__main__":
    sys.exit(main())

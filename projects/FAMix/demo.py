#!/usr/bin/env python
"""Segment images, videos or a camera: famix-demo in a clone."""

import sys

from famix_cli.demo import main

if __name__ == "__main__":
    sys.exit(main())

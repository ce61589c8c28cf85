#!/usr/bin/env python
"""Mine styles, train FAMix and evaluate it: famix-train in a clone."""

import sys

from famix_cli.train import main

launch_from_command_line = main
"""Command line for scripts that first register own classes; see README.md, "Other meta-architectures"."""

if __name__ == "__main__":
    sys.exit(main())

"""Programs behind the command lines: each module has a function `execute`, which takes the parsed arguments."""

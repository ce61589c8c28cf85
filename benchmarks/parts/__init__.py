"""Parts of the benchmarks: command lines and project paths for all of them, and the larger parts of some."""

"""The measurements of `bench.py`, and plain versions of the measured code."""

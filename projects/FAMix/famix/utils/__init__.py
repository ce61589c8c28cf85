"""Errors, messages, paths, seeds and progress bars that all folders share."""

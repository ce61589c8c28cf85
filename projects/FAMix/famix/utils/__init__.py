"""Errors, messages, paths, seeds and progress bars shared by all subpackages."""

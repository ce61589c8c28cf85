"""Confusion matrices of pixels and their scores."""

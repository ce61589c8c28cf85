"""Evaluation protocols: composed by name, applied to any semantic model."""

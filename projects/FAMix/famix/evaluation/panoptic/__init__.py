"""Panoptic quality and instance precision."""

"""Panoptic datasets: definitions, files, targets and the mapper."""

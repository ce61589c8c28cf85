"""Panoptic datasets: labels, files and the mapper."""

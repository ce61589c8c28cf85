"""Panoptic datasets: labels, files and the dataset mapper."""

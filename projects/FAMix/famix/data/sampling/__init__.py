"""Pixel counts of the training labels, and what depends on them: rare class sampling and class weights."""

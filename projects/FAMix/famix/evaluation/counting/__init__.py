"""Pixel confusion matrices and the scores computed from them."""

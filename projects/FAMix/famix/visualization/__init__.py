"""Drawings of predictions and labels, with legends, contact sheets and charts."""

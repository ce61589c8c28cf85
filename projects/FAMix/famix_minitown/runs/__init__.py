"""Experiments: their settings, their parallel runs, their records and the page of the demo."""

"""Looking into what was made: style banks, what styles do to features and predictions, and runs as one page."""

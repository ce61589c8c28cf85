"""Images: predictions, labels, legends, contact sheets and charts."""

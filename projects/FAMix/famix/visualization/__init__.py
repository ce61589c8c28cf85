"""Pictures: predictions, labels, legends, contact sheets and charts."""

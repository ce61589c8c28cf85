"""Drawing of predictions, labels, legends, contact sheets and charts."""

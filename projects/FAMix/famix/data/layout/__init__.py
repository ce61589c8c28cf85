"""Files of a dataset on disk: tree, splits and label readers."""

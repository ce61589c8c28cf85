"""The street as images, classes, instances and depth, and the conditions and looks that change the images."""

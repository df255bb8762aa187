"""Data sets, images, labels and masks, read from files."""

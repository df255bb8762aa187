"""Measures of seeds, masks, boxes and classifiers."""

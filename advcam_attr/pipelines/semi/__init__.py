"""Semi-supervised semantic segmentation."""

"""Weakly supervised semantic segmentation."""

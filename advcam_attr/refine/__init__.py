"""Localization maps and images in; seeds, and what a dense CRF, an affinity walk and saliency make of them, out."""

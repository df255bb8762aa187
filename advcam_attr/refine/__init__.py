"""Class maps and images in; what a dense CRF, an affinity walk and saliency make of them, out."""

"""Seeds, boxes, and their refinement by a dense CRF, affinity walks and saliency."""

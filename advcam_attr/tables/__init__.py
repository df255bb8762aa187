"""Tables of results with the paper's numbers."""

"""Steps of climbs, or counts of seeds, in; the data of the paper's figures, and the figures, out."""

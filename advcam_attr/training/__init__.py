"""Training loops, data loading, checkpoints and logs."""

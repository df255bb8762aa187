"""What runs over a data set: training with its checkpoints, and maps in shares, batches and stores on disk."""

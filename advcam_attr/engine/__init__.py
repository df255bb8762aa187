"""Training: a loop, its schedules, checkpoints that resume bit by bit, a log, and processes that share the work."""

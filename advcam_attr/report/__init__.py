"""Results in; figures out."""

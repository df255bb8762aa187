"""Predictions and truth in; measures out."""

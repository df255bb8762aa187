"""Classifiers by name, and the networks that the pipelines train."""

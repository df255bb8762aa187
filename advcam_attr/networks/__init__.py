"""Classifiers by name, and the networks that the pipelines train."""

from advcam_attr.networks.load import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]

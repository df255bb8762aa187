"""Classifiers by name, and the networks that the pipelines train."""

from advcam_attr.networks.load import load_model
from advcam_attr.networks.sources import LoadedModel

__all__ = ["LoadedModel", "load_model"]

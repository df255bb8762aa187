"""A classifier in; its features, logits and class weights as class activation mapping sees them, out."""

from advcam_attr.heads.find import Head
from advcam_attr.heads.view import Activations, HeadView, at_least_float32, undisturbed, unwrapped, view

__all__ = ["Activations", "Head", "HeadView", "at_least_float32", "undisturbed", "unwrapped", "view"]

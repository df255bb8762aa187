"""Features, logits and class weights of any classifier, as class activation mapping needs them."""

from advcam_attr.heads.find import Head
from advcam_attr.heads.view import Activations, HeadView, at_least_float32, inspect, undisturbed, unwrapped, view

__all__ = ["Activations", "Head", "HeadView", "at_least_float32", "inspect", "undisturbed", "unwrapped", "view"]

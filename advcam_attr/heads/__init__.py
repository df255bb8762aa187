"""Features, logits and class weights of any classifier, as class activation mapping needs them."""

from advcam_attr.heads.capture import undisturbed
from advcam_attr.heads.head import Head, Reason
from advcam_attr.heads.view import Activations, HeadView, at_least_float32, inspect, unwrapped, view

__all__ = [
    "Activations",
    "Head",
    "HeadView",
    "Reason",
    "at_least_float32",
    "inspect",
    "undisturbed",
    "unwrapped",
    "view",
]

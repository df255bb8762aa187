"""Captum attributions: CAM and its family, and AdvCAM around them."""

from advcam_attr.attr.adapters import CaptumBase
from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.attr.cam import CAM
from advcam_attr.attr.grad_cams import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM

__all__ = [
    "CAM", "CaptumBase", "EigenCAM", "GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM", "MapAttribution", "XGradCAM",
]  # fmt: skip

"""Captum attributions: CAM and its family, and AdvCAM around them."""

from advcam_attr.attr.adapters import CaptumBase
from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.attr.cam import CAM
from advcam_attr.attr.grad_cam import GradCAM
from advcam_attr.attr.grad_cam_plus_plus import GradCAMPlusPlus
from advcam_attr.attr.layer_cam import LayerCAM

__all__ = ["CAM", "CaptumBase", "GradCAM", "GradCAMPlusPlus", "LayerCAM", "MapAttribution"]

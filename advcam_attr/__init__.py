"""AdvCAM: anti-adversarially manipulated attributions, as Captum attributions over any image classifier."""

from advcam_attr.attr import CAM, CaptumBase, GradCAM, GradCAMPlusPlus, LayerCAM
from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.recipes import Recipe
from advcam_attr.types import AdvCAMError, ClimbStep

__version__ = "0.1.0"

__all__ = [
    "AdvCAM", "AdvCAMError", "CAM", "CaptumBase", "ClimbStep", "GradCAM", "GradCAMPlusPlus", "LayerCAM", "Recipe",
]  # fmt: skip

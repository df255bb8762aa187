"""AdvCAM: anti-adversarially manipulated attributions, as Captum attributions over any image classifier."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advcam_attr.attr import CAM, CaptumBase, GradCAM, GradCAMPlusPlus, LayerCAM
    from advcam_attr.attr.advcam import AdvCAM
    from advcam_attr.climbing.recipes import Recipe
    from advcam_attr.types import AdvCAMError, ClimbStep

__version__ = "0.1.0"

__all__ = [
    "AdvCAM", "AdvCAMError", "CAM", "CaptumBase", "ClimbStep", "GradCAM", "GradCAMPlusPlus", "LayerCAM", "Recipe",
]  # fmt: skip

#: Where each public name lives. It is imported when it is first used: ``advcam --help`` need not wait for torch.
_HOMES = {
    "AdvCAM": "attr.advcam",
    "AdvCAMError": "types",
    "CAM": "attr",
    "CaptumBase": "attr",
    "ClimbStep": "types",
    "GradCAM": "attr",
    "GradCAMPlusPlus": "attr",
    "LayerCAM": "attr",
    "Recipe": "climbing.recipes",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""AdvCAM: anti-adversarially manipulated attributions, as Captum attributions over any image classifier."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from advcam_attr.attr import (
        CAM,
        CaptumBase,
        EigenCAM,
        GradCAM,
        GradCAMPlusPlus,
        HiResCAM,
        LayerCAM,
        XGradCAM,
    )
    from advcam_attr.attr.advcam import AdvCAM
    from advcam_attr.climbing.recipes import Recipe, list_recipes
    from advcam_attr.heads import inspect
    from advcam_attr.types import AdvCAMError, ClimbStep
    from advcam_attr.viz.overlay import overlay, show

__version__ = "0.2.0"

__all__ = [
    "AdvCAM", "AdvCAMError", "CAM", "CaptumBase", "ClimbStep", "EigenCAM", "GradCAM", "GradCAMPlusPlus", "HiResCAM",
    "LayerCAM", "Recipe", "XGradCAM", "inspect", "list_recipes", "overlay", "show",
]  # fmt: skip

#: The module of each public name, imported when the name is first used: ``advcam --help`` does not wait for torch.
_HOMES = {
    "AdvCAM": "attr.advcam",
    "AdvCAMError": "types",
    "CAM": "attr",
    "CaptumBase": "attr",
    "ClimbStep": "types",
    "EigenCAM": "attr",
    "GradCAM": "attr",
    "GradCAMPlusPlus": "attr",
    "HiResCAM": "attr",
    "LayerCAM": "attr",
    "Recipe": "climbing.recipes",
    "XGradCAM": "attr",
    "inspect": "heads",
    "list_recipes": "climbing.recipes",
    "overlay": "viz.overlay",
    "show": "viz.overlay",
}


def __getattr__(name: str) -> _typing.Any:
    if name in _HOMES:
        return getattr(_importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

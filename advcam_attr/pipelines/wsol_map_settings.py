"""How maps for localization are made: what a user chooses in; the whole recipe, and all that maps depend on, out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from advcam_attr import __version__
from advcam_attr.climbing import recipes
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.data.images import MEAN, STD, read_rgb
from advcam_attr.runs.provenance import ImageList, weights_digest
from advcam_attr.types import AdvCAMError

#: Plain CAM for localization: the map of the image alone, neither mirrored nor rectified.
CAM_MAPS = Recipe(name="cam", source="section 6: the class map, no step taken", steps=0)


@dataclass(frozen=True)
class WSOLMapSettings:
    """How maps for localization are made.

    Attributes:
        method: ``"advcam"``, or ``"cam"``: plain CAM, for which recipe and overrides are not read.
        recipe: the recipe or its name; ``"wsol"`` is the paper's, as far as it is known.
        overrides: parts of the recipe by name: ``regularizers`` (λ; a number is that of a mean over the map),
            ``step_rule`` (a number is ξ), ``objective`` (how the other classes enter), and so on.
        base: the map that is climbed and summed: whatever `advcam_attr.AdvCAM` takes as its base.
        layer: the module, by name, whose output is mapped; None finds it.
        target: the class that is climbed: ``"truth"``, as localization is scored, or ``"predicted"``, for images
            without labels that can be trusted.
        size: height and width that images are resized to, whatever their proportions.
        mean, std: of the net's input, for RGB in [0, 1]; default: ImageNet's. Take the net's own.
        batch: how many images are climbed at once. It is part of what maps depend on in their last bits.
        read: reads a picture; boxes of CUB and ImageNet are of the stored pixels, without the EXIF orientation.
        workers: threads that read pictures ahead; 0 reads them in between.
        device: ``"auto"`` takes this process's GPU if there is one.
        autocast: compute in this precision, where torch does so automatically.
        channels_last: lay the images out so; move the net there yourself.
        overwrite: do everything anew, whatever is there.
    """

    method: Literal["advcam", "cam"] = "advcam"
    recipe: str | Recipe = "wsol"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    base: Any = "cam"
    layer: str | None = None
    target: Literal["truth", "predicted"] = "truth"
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    batch: int = 8
    read: Callable[[Path], Image.Image] = read_rgb
    workers: int = 2
    device: str = "auto"
    autocast: torch.dtype | None = None
    channels_last: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            AdvCAMError: with what would do.
        """
        if self.method not in ("advcam", "cam"):
            raise AdvCAMError(f'method must be "advcam" or "cam", got {self.method!r}')
        if self.target not in ("truth", "predicted"):
            raise AdvCAMError(f'target must be "truth" or "predicted", got {self.target!r}')
        if len(self.mean) not in (1, 3) or len(self.std) not in (1, 3) or min(self.std) <= 0:
            raise AdvCAMError(
                f"mean and std must be 3 numbers, or 1 for all channels, std above 0; got {self.mean} and {self.std}"
            )
        if self.batch < 1 or self.workers < 0 or min(self.size) < 1:
            raise AdvCAMError(
                f"batch and the sides of size must be at least 1 and workers at least 0, "
                f"got {self.batch}, {self.size} and {self.workers}"
            )

    def whole_recipe(self) -> Recipe:
        """The recipe with its changes, at one scale.

        Raises:
            AdvCAMError: an unknown recipe or part.
        """
        try:
            found = CAM_MAPS if self.method == "cam" else recipes.get(self.recipe, **self.overrides)
            return (found.unclimbed() if found.steps == 0 else found).with_(scales=1.0)
        except (TypeError, ValueError) as error:
            raise AdvCAMError(str(error)) from error


def described(settings: WSOLMapSettings, net: nn.Module, data: ImageList) -> dict[str, Any]:
    """All that the maps depend on beyond rounding, as JSON gives it back."""
    config = {
        "version": __version__,
        "data": f"{data.name} {data.split}",
        "net": type(net).__name__,
        "weights": weights_digest(net),
        "method": settings.method,
        "layer": settings.layer,
        "base": settings.base if isinstance(settings.base, str) else getattr(settings.base, "__qualname__", "custom"),
        **{f"recipe.{name}": value for name, value in recipes.config_dict(settings.whole_recipe()).items()},
        "target": settings.target,
        "size": settings.size,
        "mean": settings.mean,
        "std": settings.std,
        "read": getattr(settings.read, "__qualname__", type(settings.read).__qualname__),
        "autocast": settings.autocast and str(settings.autocast),
        "channels_last": settings.channels_last,
    }
    return dict(json.loads(json.dumps(config, default=str)))

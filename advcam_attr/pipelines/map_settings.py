"""Settings of localization maps, for seeds and for boxes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image
from torch import Tensor, nn

from advcam_attr import __version__
from advcam_attr.climbing import recipes
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.data.images import MEAN, STD, read_rgb
from advcam_attr.heads.view import unwrapped
from advcam_attr.refine.seeds import NORMALIZATIONS
from advcam_attr.registry import lookup
from advcam_attr.runs.provenance import weights_digest
from advcam_attr.runs.runtime import Runtime
from advcam_attr.types import AdvCAMError, Sample, check_resized

#: The scales of the released code, in the order of its ``make_cam``.
SEED_SCALES = (1.0, 0.5, 1.5, 2.0)

#: How maps are laid over the image; see `MapSettings`.
CellLayout = Literal["auto", "blocks", "centres", "irn"]

#: Plain CAM seeds, as the released ``make_cam``.
CAM_SEEDS = Recipe(
    name="cam",
    source="the released make_cam: at each scale relu(z) + mirrored relu(z of the mirror image)",
    steps=0,
    flip="pair",
    scales=SEED_SCALES,
    transform="relu",
)

#: Plain CAM for boxes: the signed map of the image alone.
CAM_MAPS = Recipe(name="cam", source="section 6: the class map, no step taken", steps=0)


@dataclass(frozen=True)
class MapSettings:
    """How localization maps are made.

    Attributes:
        method: ``"advcam"``, or ``"cam"``: plain CAM, which ignores recipe and overrides.
        recipe: of AdvCAM, or its name.
        overrides: parts of the recipe by name.
        base: base attribution: whatever `advcam_attr.AdvCAM` takes.
        layer: name of the module whose output is mapped; None finds it.
        scales: factors of the image's size, in place of the recipe's; boxes are of one scale.
        cells: where seeds' maps lie over the image: ``"blocks"``: cells are blocks of pixels of the net's stride;
            ``"centres"``: at the centres of their receptive fields; ``"irn"``: stretched as the released code does, for
            stride 16; ``"auto"``: the net's own ``cell_layout`` (IRN's ResNet-50: irn; ResNet-38: centres), or blocks.
        normalization: of seeds: ``"peak"``, IRN's, or ``"seam"``, SEAM's, which also subtracts the minimum.
        size: height and width that images are resized to (for boxes); None keeps their own (for seeds).
        target: the class that is climbed: the true one, or the predicted one (boxes only).
        mean, std: of the net's input, for RGB in [0, 1]; default: ImageNet's.
        saliency: a detector's foreground for a sample and its size, ``(H, W)``, bool or in [0, 1]; at most 0.5 is
            background, which should not change (section 4.4).
        batch: samples (image-class pairs) climbed at once at scale 1, and at most as many pixels at larger scales. Maps
            depend on it in their last bits.
        read: reads an image; boxes of CUB and ImageNet refer to the stored pixels, without the EXIF orientation.
        runtime: device, workers and precision.
    """

    method: Literal["advcam", "cam"] = "advcam"
    recipe: str | Recipe = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    base: Any = "cam"
    layer: str | None = None
    scales: tuple[float, ...] = SEED_SCALES
    cells: CellLayout = "auto"
    normalization: Literal["peak", "seam"] = "peak"
    size: tuple[int, int] | None = None
    target: Literal["truth", "predicted"] = "truth"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    saliency: Callable[[Sample, tuple[int, int]], Tensor] | None = None
    batch: int = 4
    read: Callable[[Path], Image.Image] = read_rgb
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        if self.method not in ("advcam", "cam"):
            raise AdvCAMError(f'method must be "advcam" or "cam", got {self.method!r}')
        if self.size is not None:
            check_resized(*self.size, "lower the size")
        if self.target not in ("truth", "predicted"):
            raise AdvCAMError(f'target must be "truth" or "predicted", got {self.target!r}')
        if self.cells not in get_args(CellLayout):
            raise AdvCAMError(f"cells must be one of {', '.join(get_args(CellLayout))}, got {self.cells!r}")
        lookup(self.normalization, NORMALIZATIONS, "normalization")
        if len(self.mean) not in (1, 3) or len(self.std) not in (1, 3) or min(self.std) <= 0:
            raise AdvCAMError(
                f"mean and std must be 3 numbers, or 1 for all channels, std above 0; got {self.mean} and {self.std}"
            )
        if self.batch < 1 or min(self.size or (1,)) < 1:
            raise AdvCAMError(f"batch and the sides of size must be at least 1, got {self.batch} and {self.size}")

    def cell_layout(self, net: nn.Module) -> CellLayout:
        """Return where the maps of a net lie; those for boxes are stretched over the image, as the released code's."""
        if self.size is not None:
            return "irn"
        own: CellLayout = getattr(net, "cell_layout", "blocks")
        return own if self.cells == "auto" else self.cells

    def whole_recipe(self) -> Recipe:
        """Return the recipe with its changes and scales."""
        try:
            if self.method == "cam":
                found = CAM_SEEDS if self.size is None else CAM_MAPS
            else:
                found = recipes.get(self.recipe, **self.overrides)
            if self.size is None:
                return found.with_(scales=self.scales)
            return (found if found.steps else found.unclimbed()).with_(scales=1.0)
        except (TypeError, ValueError) as error:
            raise AdvCAMError(str(error)) from error


def config_dict(settings: MapSettings, net: nn.Module, data: str, sweep: Sequence[int] | None) -> dict[str, Any]:
    """Return all that the maps depend on beyond rounding, as JSON values; ``sweep``: its numbers of steps."""
    runtime = settings.runtime
    config = {
        "version": __version__,
        "data": data,
        "net": type(net).__name__,
        "weights": weights_digest(net),
        "method": settings.method,
        "layer": settings.layer,
        "base": settings.base if isinstance(settings.base, str) else _name(settings.base),
        **{f"recipe.{name}": value for name, value in recipes.config_dict(settings.whole_recipe()).items()},
        "sweep": sweep,
        "size": settings.size,
        "target": settings.target,
        "mean": settings.mean,
        "std": settings.std,
        "saliency": settings.saliency and _name(settings.saliency),
        "read": _name(settings.read),
        **({} if (layout := settings.cell_layout(unwrapped(net))) == "irn" else {"cells": layout}),
        **({"normalization": settings.normalization} if settings.normalization != "peak" else {}),
        "autocast": runtime.autocast,
        "channels_last": runtime.channels_last,
    }
    return dict(json.loads(json.dumps(config, default=str)))


def _name(part: Any) -> str:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return repr(part)
    return str(getattr(part, "__qualname__", type(part).__qualname__))

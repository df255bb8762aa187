"""How seeds are made: what a user chooses in; the whole recipe, and all that the maps depend on in words, out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advcam_attr import __version__
from advcam_attr.climbing import recipes
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.data.images import MEAN, STD
from advcam_attr.data.samples import SegmentationData
from advcam_attr.pipelines.seed_maps import CAM_SEEDS, SEED_SCALES
from advcam_attr.runs.provenance import weights_digest
from advcam_attr.types import AdvCAMError, Sample


@dataclass(frozen=True)
class SeedSettings:
    """How seeds are made.

    Attributes:
        method: ``"advcam"``, or ``"cam"``: plain CAM seeds, for which recipe and overrides are not read.
        recipe: the recipe or its name.
        overrides: parts of the recipe by name.
        base: the map that is climbed and summed: whatever `advcam_attr.AdvCAM` takes as its base.
        layer: the module, by name, whose output is mapped; None finds it.
        scales: factors; default: the released code's. The recipe's own are not read.
        mean, std: of the net's input, for RGB in [0, 1]; default: ImageNet's.
        saliency: a detector's foreground for a sample and its size, ``(H, W)``, bool or in [0, 1]; at most 0.5 is
            background and may not change (section 4.4).
        batch_rows: how many rows (an image and one class) are climbed at once at scale 1, and so many pixels at most at
            larger scales.
        workers: threads that read pictures ahead; 0 reads them in between.
        device: ``"auto"`` takes this process's GPU if there is one.
        autocast: compute in this precision, where torch does so automatically.
        channels_last: lay the images out so; move the net there yourself.
        overwrite: do everything anew, whatever is there.
    """

    method: Literal["advcam", "cam"] = "advcam"
    recipe: str | Recipe = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    base: Any = "cam"
    layer: str | None = None
    scales: tuple[float, ...] = SEED_SCALES
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    saliency: Callable[[Sample, tuple[int, int]], Tensor] | None = None
    batch_rows: int = 4
    workers: int = 2
    device: str = "auto"
    autocast: torch.dtype | None = None
    channels_last: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            AdvCAMError: with what would do.
        """
        if len(self.mean) not in (1, 3) or len(self.std) not in (1, 3) or min(self.std) <= 0:
            raise AdvCAMError(
                f"mean and std must be 3 numbers, or 1 for all channels, std above 0; got {self.mean} and {self.std}"
            )
        if self.batch_rows < 1 or self.workers < 0:
            raise AdvCAMError(
                f"batch_rows must be at least 1 and workers at least 0, got {self.batch_rows} and {self.workers}"
            )

    def whole_recipe(self) -> Recipe:
        """The recipe with its changes, at these scales.

        Raises:
            AdvCAMError: an unknown recipe, part or method.
        """
        if self.method not in ("advcam", "cam"):
            raise AdvCAMError(f'method must be "advcam" or "cam", got {self.method!r}')
        try:
            found = CAM_SEEDS if self.method == "cam" else recipes.get(self.recipe, **self.overrides)
            return found.with_(scales=self.scales)
        except (TypeError, ValueError) as error:
            raise AdvCAMError(str(error)) from error


def described(
    settings: SeedSettings, net: nn.Module, data: SegmentationData, sweep: Sequence[int] | None
) -> dict[str, Any]:
    """All that the maps depend on beyond rounding, as JSON gives it back; ``sweep``: its numbers of steps."""
    config = {
        "version": __version__,
        "data": data.name,
        "net": type(net).__name__,
        "weights": weights_digest(net),
        "method": settings.method,
        "layer": settings.layer,
        "base": settings.base if isinstance(settings.base, str) else _name(settings.base),
        **{f"recipe.{name}": value for name, value in recipes.config_dict(settings.whole_recipe()).items()},
        "sweep": sweep,
        "mean": settings.mean,
        "std": settings.std,
        "saliency": settings.saliency and _name(settings.saliency),
        "autocast": settings.autocast and str(settings.autocast),
        "channels_last": settings.channels_last,
    }
    return dict(json.loads(json.dumps(config, default=str)))


def _name(part: Any) -> str:
    """A function by its name, a frozen part by its fields, anything else by its type."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return repr(part)
    return str(getattr(part, "__qualname__", type(part).__qualname__))

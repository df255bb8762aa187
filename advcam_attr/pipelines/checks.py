"""Checks of what later stages need, before anything is trained or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advcam_attr.attr.advcam import as_base
from advcam_attr.data.masks import SaliencyFolder
from advcam_attr.data.samples import SegmentationData
from advcam_attr.heads import view
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import shard_of_launch
from advcam_attr.training.fit import loss_scaler
from advcam_attr.training.log import require_logger
from advcam_attr.types import AdvCAMError, NoMaskError


def check_runtime(runtime: Runtime, folder: Path, *, trains: bool = True) -> None:
    """Raise if device, precision, logger or the folder of a run cannot be used."""
    device = runtime.torch_device(shard_of_launch())
    if trains:
        loss_scaler(runtime.autocast, device.type)
        require_logger(runtime.logger)
    taken = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if taken is not None and not taken.is_dir():
        raise AdvCAMError(f"a run needs a folder, but {taken} is a file; give another --run")


def check_base(base: Any, net: Any, layer: str | None = None) -> None:
    """Raise if a base attribution does not exist, or cannot be made of a net."""
    as_base(base, view(net, layer))


def check_truth(data: SegmentationData) -> None:
    """Raise unless some image has a true mask to score with."""
    for sample in data.samples:
        try:
            data.mask(sample)
        except NoMaskError:
            continue
        return
    raise AdvCAMError(f"no image of {data.name} {data.split} at {data.root} has a true mask to score with")


def saliency_folder(folder: str | Path, data: SegmentationData) -> SaliencyFolder:
    """Return the saliency maps of all images of a split; one that is missing raises."""
    saliency = SaliencyFolder(folder)
    missing = [sample for sample in data.samples if saliency.find(sample.id) is None]
    if missing:
        raise AdvCAMError(
            f"saliency maps of {len(missing)} of {len(data.samples)} images are missing in {folder}, e.g. of "
            f"{missing[0].id}; add them, or leave saliency out"
        )
    return saliency

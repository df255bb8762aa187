"""What an attribution of images will do, and what it needs for that, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from advcam_attr.data.images import read_rgb
from advcam_attr.pipelines.attribute import Settings, advcam_of, prepared
from advcam_attr.pipelines.model import head_at
from advcam_attr.pipelines.targets import Classes
from advcam_attr.types import AdvCAMError


def plan_attribution(images: Sequence[Path], out: Path, settings: Settings) -> str:
    """Check settings, model, head and classes, and that images can be read; return what is cached and what is to do.

    Raises:
        AdvCAMError: the settings cannot be used, the folder holds results of other settings, or no image can be read.
    """
    _, jobs, device = prepared(images, out, settings)
    loaded = settings.model.load()
    advcam = advcam_of(loaded.model.to(device), settings)
    errors: list[str] = []
    first: torch.Tensor | None = None
    for image in images:
        try:
            pixels = read_rgb(image)
            first = loaded.preprocess(pixels).to(device) if first is None else first
        except AdvCAMError as error:
            errors.append(str(error))
    if first is None:
        raise AdvCAMError(errors[0])
    head = head_at(advcam.view, first, loaded.name, class_weights=advcam.needs_class_weights)
    classes = Classes(head.classes, loaded.class_names)
    for target in settings.targets:
        classes.parse(target)
    cached = sum(bool(job.kept) for job in jobs)
    unreadable = f"; unreadable: {len(errors)} ({errors[0]})" if errors else ""
    about = f"{loaded.name} at layer {head.layer}, targets {', '.join(settings.targets)}, on {device}"
    return f"{about}\ncached: {cached}; to do: {len(jobs) - cached}{unreadable}; results in {out}"

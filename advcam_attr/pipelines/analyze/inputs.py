"""The image–class pairs that image analyses perturb, from image files or toy scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.climbing.loop import climb
from advcam_attr.climbing.state import Plan
from advcam_attr.data.images import read_rgb
from advcam_attr.data.toy import CLASS_NAMES, make_scenes
from advcam_attr.pipelines.attribute import Settings, advcam_of
from advcam_attr.pipelines.demo import TEST_SEED, normalise, toy_net
from advcam_attr.pipelines.model import head_at
from advcam_attr.pipelines.targets import Classes, TopK, resolve
from advcam_attr.runs.runtime import choose_device
from advcam_attr.types import AdvCAMError, ClimbStep


@dataclass(frozen=True)
class AnalysisInputs:
    """R image–class pairs and the classifier that scores them.

    Attributes:
        advcam: the attribution whose view, base and recipe are analyzed.
        x: normalised images, ``(R, C, H, W)``.
        target: classes, ``(R,)``.
        images: for display, ``(R, H, W, 3)`` in [0, 1].
        wanted: classes requested by name; empty for the highest-scoring ones.
        batch_size: pairs per climb.
    """

    advcam: AdvCAM
    x: Tensor
    target: Tensor
    images: np.ndarray
    names: tuple[str, ...]
    classes: Classes
    wanted: tuple[int, ...]
    probability: Literal["softmax", "sigmoid"]
    batch_size: int

    def __len__(self) -> int:
        return len(self.target)

    def class_names(self) -> list[str]:
        return [self.classes.name(int(k)).split(",")[0] for k in self.target]

    def select(self, indices: Sequence[int]) -> AnalysisInputs:
        chosen, names = list(indices), tuple(self.names[i] for i in indices)
        return replace(self, x=self.x[chosen], target=self.target[chosen], images=self.images[chosen], names=names)

    def first(self, count: int) -> AnalysisInputs:
        return self.select(range(min(count, len(self))))

    def batches(self) -> Iterator[AnalysisInputs]:
        for start in range(0, len(self), self.batch_size):
            yield self.select(range(start, min(start + self.batch_size, len(self))))

    def climb(self, plan: Plan, steps: int) -> Iterator[ClimbStep]:
        return climb(self.advcam.view, self.x, self.target, plan, steps=steps)

    def best_per_image(self) -> AnalysisInputs:
        """Return each image once, with the highest-scoring of its classes."""
        best: dict[str, tuple[float, int]] = {}
        with torch.no_grad():
            for i, (name, k) in enumerate(zip(self.names, self.target, strict=True)):
                score = float(self.advcam.view(self.x[i : i + 1]).logits[0, k])
                best[name] = max(best.get(name, (score, i)), (score, i))
        return self.select(sorted(i for _, i in best.values()))


def read_inputs(images: Sequence[Path], settings: Settings) -> AnalysisInputs:
    """Read images and choose their classes, as ``advcam attribute`` does; the settings' saliency folder is ignored."""
    if settings.batch_size < 1:
        raise AdvCAMError(f"the batch size must be at least 1, got {settings.batch_size}")
    advcam_of(nn.Identity(), replace(settings, layer=None))  # check the options before loading the model
    device = choose_device(settings.device)
    loaded = settings.model.load()
    advcam = advcam_of(loaded.model.to(device), settings)
    inputs = [loaded.preprocess(read_rgb(image)).to(device) for image in images]
    if len({x.shape for x in inputs}) > 1:
        raise AdvCAMError(f"images of several sizes cannot be climbed together with {loaded.name}: give --input-size")
    head = head_at(advcam.view, inputs[0], loaded.name, class_weights=advcam.needs_class_weights)
    classes = Classes(head.classes, loaded.class_names)
    targets = [classes.parse(target) for target in settings.targets]
    image_of, target = [], []
    for n, x in enumerate(inputs):
        with torch.no_grad():
            found = resolve(targets, advcam.view(x[None]).logits[0])
        image_of += [n] * len(found)
        target += found
    x = torch.stack(inputs)
    return AnalysisInputs(
        advcam,
        x[image_of],
        torch.tensor(target, device=device),
        loaded.display(x).permute(0, 2, 3, 1).cpu().numpy()[image_of],
        tuple(images[n].name for n in image_of),
        classes,
        tuple(one for one in targets if not isinstance(one, TopK)),
        settings.probability,
        settings.batch_size,
    )


def toy_inputs(out: Path, settings: Settings, count: int) -> AnalysisInputs:
    """Make ``count`` toy scenes, each with all of its classes, and the demonstration's net, cached in ``out``."""
    scenes = make_scenes(count, seed=TEST_SEED)
    image, target = scenes.labels.nonzero().unbind(1)
    return AnalysisInputs(
        advcam_of(toy_net(out), settings),
        normalise(scenes.images)[image],
        target,
        scenes.images[image].permute(0, 2, 3, 1).numpy(),
        tuple(f"scene {int(n)}" for n in image),
        Classes(len(CLASS_NAMES), CLASS_NAMES),
        (),
        "sigmoid",
        settings.batch_size,
    )

"""Image files and a model's name, or toy scenes, in; the rows that analyses climb, out."""

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
from advcam_attr.pipelines.attribute import Classes, Settings, TopK, resolve
from advcam_attr.pipelines.demo import TEST_SEED, normalise, toy_net
from advcam_attr.pipelines.model import head_at
from advcam_attr.runs.sharding import choose_device
from advcam_attr.types import AdvCAMError, ClimbStep


@dataclass(frozen=True)
class Subjects:
    """R rows, each an image and one of its classes, and the classifier that sees them.

    Attributes:
        advcam: the attribution whose view, base and recipe are analyzed.
        x: the image of each row, ``(R, C, H, W)``, normalised.
        target: its class, ``(R,)``.
        pictures: each row's picture, ``(R, H, W, 3)`` in [0, 1].
        names: of the rows' image files.
        classes: of the model.
        wanted: the classes that were asked for by name; none if they are the highest-scoring ones.
        probability: what turns logits into probabilities.
        batch_size: how many rows are climbed at once.
    """

    advcam: AdvCAM
    x: Tensor
    target: Tensor
    pictures: np.ndarray
    names: tuple[str, ...]
    classes: Classes
    wanted: tuple[int, ...]
    probability: Literal["softmax", "sigmoid"]
    batch_size: int

    def __len__(self) -> int:
        return len(self.target)

    def class_names(self) -> list[str]:
        """The name of each row's class, the first of its synonyms."""
        return [self.classes.name(int(k)).split(",")[0] for k in self.target]

    def keys(self) -> list[tuple[str, int]]:
        """What tells rows apart: image and class."""
        return list(zip(self.names, self.target.tolist(), strict=True))

    def first(self, rows: int) -> Subjects:
        """The first rows."""
        return self.pick(list(range(min(rows, len(self)))))

    def pick(self, rows: Sequence[int]) -> Subjects:
        """Some rows."""
        chosen = list(rows)
        return replace(
            self, x=self.x[chosen], target=self.target[chosen], pictures=self.pictures[chosen],
            names=tuple(self.names[row] for row in chosen),
        )  # fmt: skip

    def batches(self) -> Iterator[Subjects]:
        """The rows, as many at a time as are climbed at once."""
        for start in range(0, len(self), self.batch_size):
            yield self.pick(range(start, min(start + self.batch_size, len(self))))

    def walk(self, plan: Plan, steps: int) -> Iterator[ClimbStep]:
        """Climb all rows together."""
        return climb(self.advcam.view, self.x, self.target, plan, steps=steps)


def subjects_of(images: Sequence[Path], settings: Settings) -> Subjects:
    """Read images and choose their classes, as ``advcam attribute`` does.

    Args:
        images: the files; see `advcam_attr.data.images.expand_images`.
        settings: model, targets, recipe and so on; a saliency folder is not read.

    Raises:
        AdvCAMError: an image cannot be read, images differ in size, or as `advcam_attr.pipelines.attribute`.
    """
    if settings.batch_size < 1:
        raise AdvCAMError(f"the batch size must be at least 1, got {settings.batch_size}")
    advcam_of(nn.Identity(), replace(settings, layer=None))  # refuses misspelt options before anything costs time
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
    pictures = loaded.display(x).permute(0, 2, 3, 1).cpu().numpy()
    return Subjects(
        advcam, x[image_of], torch.tensor(target, device=device), pictures[image_of],
        tuple(images[n].name for n in image_of), classes,
        tuple(one for one in targets if not isinstance(one, TopK)), settings.probability, settings.batch_size,
    )  # fmt: skip


def toy_subjects(out: Path, settings: Settings, count: int) -> Subjects:
    """Toy scenes, each with all classes that it shows, and the demonstration's net.

    Args:
        out: the folder that keeps the net.
        settings: base, recipe and overrides; the model and its targets are not read.
        count: how many scenes.

    Raises:
        AdvCAMError: settings that cannot be used.
    """
    scenes = make_scenes(count, seed=TEST_SEED)
    advcam = advcam_of(toy_net(out), settings)
    image, target = scenes.labels.nonzero().unbind(1)
    x = normalise(scenes.images)
    return Subjects(
        advcam, x[image], target, scenes.images[image].permute(0, 2, 3, 1).numpy(),
        tuple(f"scene {int(n)}" for n in image), Classes(len(CLASS_NAMES), CLASS_NAMES), (), "sigmoid",
        settings.batch_size,
    )  # fmt: skip


def advcam_of(model: nn.Module, settings: Settings) -> AdvCAM:
    """The attribution that the settings describe.

    Raises:
        AdvCAMError: they cannot be used.
    """
    try:
        return AdvCAM(model, settings.layer, base=settings.base, recipe=settings.recipe, **settings.overrides)
    except (TypeError, ValueError) as error:
        raise AdvCAMError(str(error)) from error


def only_of(subjects: Subjects) -> Subjects:
    """Each image once: with the class, of those asked for, whose score is highest."""
    best: dict[str, tuple[float, int]] = {}
    with torch.no_grad():
        for row, (name, k) in enumerate(zip(subjects.names, subjects.target, strict=True)):
            score = float(subjects.advcam.view(subjects.x[row : row + 1]).logits[0, k])
            best[name] = max(best.get(name, (score, row)), (score, row))
    return subjects.pick(sorted(row for _, row in best.values()))

"""Shared dataclasses and errors, and the letters in which every tensor's shape is written.

N images, R samples (one image and one class each), V views of a sample (1, or 2 for an image and its mirror
image), B = R·V views in a batch, K classes, C channels, H, W the image, h, w the map's grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: The label of pixels that are ignored: PASCAL VOC's void.
VOID = 255

#: How many instances an image may have: their numbers in a palette PNG, beside 0 for background and 255 for void.
MOST_INSTANCES = 254


#: The most characters of an error's message.
_LONGEST = 1500


#: The most pixels that an image is resized to, near Pillow's limit of images.
MAX_RESIZED = 1 << 27


class AdvCAMError(ValueError):
    """Input that cannot be used; its message is one line that names the input and the fix.

    Line breaks in names and in messages of libraries become spaces, and very long messages are cut.
    """

    def __init__(self, message: str = "") -> None:
        line = " ".join(str(message).splitlines())
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ...")


def check_resized(height: float, width: float, remedy: str) -> None:
    """Raise before an image of absurd size is made.

    Example:
        >>> check_resized(1e5, 1e5, "lower the scale")
        Traceback (most recent call last):
        advcam_attr.types.AdvCAMError: an image of 100000 x 100000 pixels is too large: lower the scale
    """
    if height * width > MAX_RESIZED:
        raise AdvCAMError(f"an image of {height:.0f} x {width:.0f} pixels is too large: {remedy}")


class UnknownOptionError(AdvCAMError, TypeError):
    """A keyword that a class or function does not have."""


class NoMaskError(AdvCAMError):
    """An image without a true mask, as in test splits; a damaged mask is another error."""


@dataclass(frozen=True)
class ClimbStep:
    """One step of a climb (gradient ascent on the class score); all tensors are detached.

    Attributes:
        index: 0 for the clean image, then 1, 2, ..., ``steps``, at each scale.
        x: the perturbed images, ``(R, V, C, H, W)``, float32.
        logits: the class scores at ``x``, ``(R, V, K)``.
        maps: the base attribution at ``x`` (or the base's ``accumulated`` maps), its views flipped back and summed,
            ``(R, h, w)``.
        view_maps: the maps of each view before that, ``(R, V, h, w)``.
        objective: the score whose gradient was followed, ``(R,)``.
        climbing: which samples had not stopped before this step, ``(R,)``, bool; maps of the others do not count.
        steps: how many steps follow the clean image at this scale.
        scale: factor of the image's size.
        weight: of this scale's maps in the sum over scales.
    """

    index: int
    x: Tensor
    logits: Tensor
    maps: Tensor
    view_maps: Tensor
    objective: Tensor
    climbing: Tensor
    steps: int = 0
    scale: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        id: unique in the data set, and the name of all files made from it; e.g. ``"2007_000032"``.
        image: path of its file.
        labels: the classes that it shows, 0-based without the background, ascending; may be empty.
    """

    id: str
    image: Path
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Cells:
    """The cells of a grid over an image, in pixels of that image, each as (vertical, horizontal).

    Attributes:
        offset: of the first cell's centre from the first pixel's; may lie outside of the image.
        stride: between the centres of neighbouring cells.
    """

    offset: tuple[float, float]
    stride: tuple[float, float]


@dataclass(frozen=True)
class ClassMaps:
    """The localization maps of the classes of one image, each with a peak of about 1.

    Attributes:
        classes: 0-based, ascending; class k is k + 1 in label maps.
        size: height and width of the image.
        cam: ``(K, ceil(H / 4), ceil(W / 4))``, float32; input of affinity networks.
        high_res: ``(K, H, W)``, float32; seeds are these maps above a threshold.
    """

    classes: tuple[int, ...]
    size: tuple[int, int]
    cam: Tensor
    high_res: Tensor


@dataclass(frozen=True)
class Instances:
    """The instances of one image, found or true.

    Attributes:
        classes: 0-based, one an instance.
        masks: ``(M, H, W)`` bool.
        scores: one an instance, of those found; empty for true ones.
        crowds: the indices of true ones that are crowds, which count neither for nor against what is found in them.
    """

    classes: tuple[int, ...]
    masks: Tensor
    scores: tuple[float, ...] = ()
    crowds: frozenset[int] = frozenset()

"""Steps of a climb in; the paths of its images' pooled features, and these in the plane by t-SNE, out (Fig. 16)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from advcam_attr.analysis.samples import rounded
from advcam_attr.heads import HeadView, undisturbed
from advcam_attr.types import AdvCAMError, ClimbStep
from advcam_attr.viz.axes import CYCLE, figure, style_axes


@dataclass(frozen=True)
class Trajectories:
    """What the classifier reads of R images at each step of their climbs.

    Attributes:
        features: ``(R, S + 1, C)``, the features pooled over the grid.
        target: ``(R,)``, the class that each row climbs.
    """

    features: Tensor
    target: Tensor


@dataclass(frozen=True)
class Embedding:
    """Trajectories in the plane.

    Attributes:
        points: ``(R, S + 1, 2)``.
        target: ``(R,)``.
        perplexity: of the t-SNE.
    """

    points: Tensor
    target: Tensor
    perplexity: float

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "perplexity": self.perplexity,
            "target": self.target.tolist(),
            "points": rounded(self.points, 4),
        }


def trajectories(view: HeadView, walk: Iterable[ClimbStep], target: Tensor) -> Trajectories:
    """The mean of the mapped tensor over its grid, of the image itself, at every step. One forward a step.

    Args:
        view: the classifier that was climbed.
        walk: from `advcam_attr.climbing.climb`.
        target: the class of each row, ``(R,)``.
    """
    found = []
    for step in walk:
        with undisturbed(view.model), torch.no_grad():
            found.append(view(step.x[:, 0]).features.float().mean((2, 3)).cpu())
    return Trajectories(torch.stack(found, 1), target.cpu())


def embed(found: Trajectories, *, perplexity: float = 30.0, seed: int = 0) -> Embedding:
    """Lay the features of all rows and steps out in the plane, by t-SNE.

    Args:
        found: of at least one row.
        perplexity: about how many neighbours a point has; below the number of points.
        seed: of the t-SNE.

    Raises:
        AdvCAMError: too few points for the perplexity, or scikit-learn is missing.
    """
    require_perplexity(perplexity, found.features.shape[0], found.features.shape[1] - 1)
    points = found.features.flatten(0, 1)
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise AdvCAMError("t-SNE needs scikit-learn: pip install 'advcam_attr[analysis]'") from error
    tsne = TSNE(2, perplexity=perplexity, init="pca" if min(points.shape) > 1 else "random", random_state=seed)
    plane = torch.from_numpy(tsne.fit_transform(points.numpy()))
    return Embedding(plane.reshape(*found.features.shape[:2], 2), found.target, perplexity)


def require_perplexity(perplexity: float, images: int, steps: int) -> float:
    """``perplexity``, if so many images and steps are points enough for it.

    Raises:
        AdvCAMError: they are not.
    """
    points = images * (steps + 1)
    if not 0 < perplexity < points:
        raise AdvCAMError(
            f"t-SNE needs more points than its perplexity of {perplexity:g}: {images} images, each clean and after "
            f"{steps} steps, are {points}; give more images, or a perplexity above 0 and below {points}"
        )
    return perplexity


def require_all(target: Tensor, wanted: Sequence[int], names: Sequence[str]) -> None:
    """That each class that was asked for has an image.

    Raises:
        AdvCAMError: one has none.
    """
    for index, name in zip(wanted, names, strict=True):
        if not bool((target == index).any()):
            raise AdvCAMError(f"no image is of the class {name!r}: give one, or leave the class out")


def plot_trajectories(found: Embedding, names: dict[int, str]) -> Figure:
    """A line an image, from a small dot at its clean image to a large one at its last step; a colour a class.

    Args:
        found: from `embed`.
        names: of the classes, by index.
    """
    drawing, axes = figure(width=5.2, height=4.6)
    place = axes[0, 0]
    for number, index in enumerate(dict.fromkeys(found.target.tolist())):
        colour = CYCLE[number % len(CYCLE)]
        for row, path in enumerate(found.points[found.target == index]):
            label = names.get(index, f"class {index}") if row == 0 else None
            place.plot(*path.T, color=colour, linewidth=0.8, alpha=0.7)
            place.scatter(*path[0], s=14, color="white", edgecolors=colour, zorder=3)
            place.scatter(*path[-1], s=28, color=colour, zorder=3, label=label)
    style_axes(place, f"features from the clean image (○) to step {found.points.shape[1] - 1} (●)")
    place.set_xticks([])
    place.set_yticks([])
    place.legend(frameon=False, fontsize=8)
    return drawing

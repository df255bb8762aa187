"""Fig. 16: trajectories of pooled features during climbs, embedded in the plane by t-SNE."""

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
    """The features of R samples at each step, averaged over the grid, ``(R, S + 1, C)``, and the classes, ``(R,)``."""

    features: Tensor
    target: Tensor


@dataclass(frozen=True)
class Embedding:
    """Trajectories in the plane, ``(R, S + 1, 2)``, and the class of each, ``(R,)``."""

    points: Tensor
    target: Tensor
    perplexity: float

    def describe(self) -> dict[str, Any]:
        return {
            "perplexity": self.perplexity,
            "target": self.target.tolist(),
            "points": rounded(self.points, 4),
        }


def trajectories(view: HeadView, steps: Iterable[ClimbStep], target: Tensor) -> Trajectories:
    """Return the spatial mean of the mapped tensor of the image itself at every step."""
    found = []
    for step in steps:
        with undisturbed(view.model), torch.no_grad():
            found.append(view(step.x[:, 0]).features.float().mean((2, 3)).cpu())
    return Trajectories(torch.stack(found, 1), target.cpu())


def embed(found: Trajectories, *, perplexity: float = 30.0, seed: int = 0) -> Embedding:
    """Embed the features of all samples and steps in the plane by t-SNE."""
    require_perplexity(perplexity, found.features.shape[0], found.features.shape[1] - 1)
    points = found.features.flatten(0, 1)
    tsne = require_tsne()(
        2, perplexity=perplexity, init="pca" if min(points.shape) > 1 else "random", random_state=seed
    )
    plane = torch.from_numpy(tsne.fit_transform(points.numpy()))
    return Embedding(plane.reshape(*found.features.shape[:2], 2), found.target, perplexity)


def require_tsne() -> Any:
    """Return scikit-learn's t-SNE; raise where it is not installed."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise AdvCAMError("t-SNE needs scikit-learn: pip install 'advcam_attr[analysis]'") from error
    return TSNE


def require_perplexity(perplexity: float, images: int, steps: int) -> float:
    """Return the perplexity; raise unless it is below the number of points of these images and steps."""
    points = images * (steps + 1)
    if not 0 < perplexity < points:
        raise AdvCAMError(
            f"t-SNE needs more points than its perplexity of {perplexity:g}: {images} images, each clean and after "
            f"{steps} steps, are {points}; give more images, or a perplexity above 0 and below {points}"
        )
    return perplexity


def require_all(target: Tensor, wanted: Sequence[int], names: Sequence[str]) -> None:
    for index, name in zip(wanted, names, strict=True):
        if not bool((target == index).any()):
            raise AdvCAMError(f"no image is of the class {name!r}: give one, or leave the class out")


def plot_trajectories(found: Embedding, names: dict[int, str]) -> Figure:
    """Plot a line per sample, from the clean image (○) to its last step (●), in a colour per class."""
    drawing, axes = figure(width=5.2, height=4.6)
    place = axes[0, 0]
    for number, index in enumerate(dict.fromkeys(found.target.tolist())):
        colour = CYCLE[number % len(CYCLE)]
        for n, path in enumerate(found.points[found.target == index]):
            label = names.get(index, f"class {index}") if n == 0 else None
            place.plot(*path.T, color=colour, linewidth=0.8, alpha=0.7)
            place.scatter(*path[0], s=14, color="white", edgecolors=colour, zorder=3)
            place.scatter(*path[-1], s=28, color=colour, zorder=3, label=label)
    style_axes(place, f"features from the clean image (○) to step {found.points.shape[1] - 1} (●)")
    place.set_xticks([])
    place.set_yticks([])
    place.legend(frameon=False, fontsize=8)
    return drawing

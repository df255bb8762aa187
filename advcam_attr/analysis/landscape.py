"""Fig. 3: the classification loss around images at the end of climbs and attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from advcam_attr.analysis.samples import rounded
from advcam_attr.climbing.objective import Target
from advcam_attr.climbing.state import ClimbState
from advcam_attr.heads import HeadView, undisturbed
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.axes import figure, style_axes

#: A loss from logits ``(B, K)`` and classes ``(B,)``, ``(B,)``.
Loss = Callable[[Tensor, Tensor], Tensor]


def softmax_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log softmax(y)_c, for classifiers of one class an image."""
    return F.cross_entropy(logits, target, reduction="none")


def sigmoid_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log sigmoid(y_c), for multi-label classifiers of which only class c is known to be in the image."""
    return F.softplus(-logits.gather(1, target[:, None])[:, 0])


LOSSES: dict[str, Loss] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


@dataclass(frozen=True)
class Attack:
    """The negative class score as an objective: climbing it is an adversarial attack (Eq. 1)."""

    def __call__(self, state: ClimbState) -> Tensor:
        return -Target()(state)


@dataclass(frozen=True)
class Landscape:
    """The loss of R images moved by a·n + b·r.

    Attributes:
        distance: P values of a and b: the root mean square of the change of the input's values.
        loss: ``(R, P, P)``, a down and b across.
    """

    distance: tuple[float, ...]
    loss: Tensor

    def rise(self) -> Tensor:
        """Return the change of the loss from each image to the farthest point along n, ``(R,)``."""
        middle = len(self.distance) // 2
        return self.loss[:, -1, middle] - self.loss[:, middle, middle]

    def describe(self) -> dict[str, Any]:
        return {
            "distance": list(self.distance),
            "mean_loss": rounded(self.loss.mean(0)),
            "rise_along_gradient": rounded(self.rise()),
        }


def landscape(
    view: HeadView,
    images: Tensor,
    target: Tensor,
    *,
    loss: str | Loss = "softmax",
    reach: float = 0.1,
    points: int = 11,
    seed: int = 0,
) -> Landscape:
    """Return the loss of images moved along their loss's gradient n and a random direction r of equal norm (Fig. 3).

    Both directions have a root mean square of 1; n is zero where the loss has no gradient.

    Args:
        view: the classifier.
        images: ``(R, C, H, W)``, e.g. the ends of a climb or an attack.
        target: the class of each, ``(R,)``.
        loss: ``"softmax"``, ``"sigmoid"`` or a function of float64 logits and classes.
        reach: the largest distance, in units of the net's input.
        points: P, odd, the number of distances on each axis.
        seed: of r, which differs between images.
    """
    measure = lookup(loss, LOSSES, "loss")
    if points < 3 or points % 2 == 0 or reach <= 0:
        raise AdvCAMError(f"a landscape needs an odd number of points above 1, and a reach, got {points} and {reach}")
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(images.shape, generator=generator).to(images)
    distance = torch.linspace(-reach, reach, points, dtype=torch.float64)
    with undisturbed(view.model):
        leaf = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(measure(view(leaf).logits.double(), target).sum(), leaf)
        n, r = _unit(gradient), _unit(random)
        found = torch.empty(len(images), points, points, dtype=torch.float64)
        with torch.no_grad():
            for i, a in enumerate(distance.tolist()):
                for j, b in enumerate(distance.tolist()):
                    found[:, i, j] = measure(view(images + a * n + b * r).logits.double(), target).cpu()
    return Landscape(tuple(distance.tolist()), found.float())


def _unit(direction: Tensor) -> Tensor:
    size = direction.double().square().mean((1, 2, 3), keepdim=True).sqrt()
    return torch.where(size > 0, direction / size.clamp_min(1e-300), 0.0).to(direction.dtype)


def plot_landscape(found: Mapping[str, Landscape]) -> Figure:
    """Plot the mean surface of each variant (clean, climbed, attacked), all on one scale."""
    surfaces = {name: one.loss.mean(0) for name, one in found.items()}
    low, high = min(float(s.min()) for s in surfaces.values()), max(float(s.max()) for s in surfaces.values())
    drawing, axes = figure(1, len(found), width=3.6)
    for place, (name, surface) in zip(axes[0], surfaces.items(), strict=True):
        distance = found[name].distance
        share = torch.linspace(0, 1, 17).square()  # finer where the loss is low
        levels = (low + share * (high - low if high > low else 1.0)).tolist()
        drawn = place.contourf(distance, distance, surface.numpy(), levels=levels, cmap="viridis")
        middle = float(surface[len(distance) // 2, len(distance) // 2])
        style_axes(place, f"{name}: loss {middle:.3g}", "along a random direction r", "along the loss's gradient n")
        place.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=5)
    drawing.colorbar(drawn, ax=list(axes[0]), label="classification loss", format="%.2g")
    return drawing

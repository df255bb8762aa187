"""Dense CRF inference by mean field on permutohedral lattices.

The fully connected CRF of Krähenbühl and Koltun ("Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", 2011). A labelling x of the pixels has the energy

    E(x) = sum_p U_p(x_p) + sum_{p < q} [x_p != x_q] · sum_m w_m k_m(p, q)

with a *spatial* kernel, ``exp(-|s_p - s_q|² / 2σ_xy²)`` of positions s, and a *bilateral* one,
``exp(-|s_p - s_q|² / 2σ_xy² - |c_p - c_q|² / 2σ_rgb²)`` of positions and colours c, each normalised symmetrically.
Mean field starts from ``Q = softmax(-U)`` and repeats, for all pixels at once,

    Q_p(l) = softmax_l( -U_p(l) + sum_m w_m sum_q k_m(p, q) Q_q(l) );

as in the authors' code, q = p is included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from advcam_attr.refine.permutohedral import Lattice, build
from advcam_attr.refine.recipes import CRF_RECIPES, CRFRecipe
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError


@torch.no_grad()
def mean_field(unary: Tensor, kernels: Sequence[tuple[float, Lattice]], iterations: int) -> Tensor:
    """Return the mean-field marginals ``(P, K)`` of a CRF with Potts compatibility.

    Args:
        unary: U, ``(P, K)``.
        kernels: pairs of w and a normalised filter over the P pixels.
        iterations: message passes; 0 gives ``softmax(-U)``.
    """
    scores = -unary
    marginals = scores.softmax(1)
    messages = torch.empty_like(scores)
    for _ in range(iterations):
        messages.copy_(scores)
        for weight, kernel in kernels:
            messages.add_(kernel.filter(marginals), alpha=weight)
        torch.softmax(messages, 1, out=marginals)
    return marginals


class DenseCRF:
    """A dense CRF over the pixels of images, from unaries to marginals; lattices are built once for all unaries.

    Images never mix: each gets the result that it would get alone.

    Args:
        images: RGB, ``(N, 3, H, W)`` uint8, not normalised; inference runs on their device.
        recipe: a name of `CRF_RECIPES`, or a `CRFRecipe`.
        dtype: of the computation.

    Example:
        >>> image = torch.tensor([0, 10, 200, 210], dtype=torch.uint8).expand(1, 3, 2, 4)
        >>> labels = torch.tensor([[[1, 0, 0, 0], [1, 1, 0, 1]]])
        >>> DenseCRF(image, "psa")(unary_from_labels(labels, 2)).argmax(1)
        tensor([[[1, 1, 0, 0],
                 [1, 1, 0, 0]]])
    """

    def __init__(self, images: Tensor, recipe: CRFRecipe | str = "irn", dtype: torch.dtype = torch.float32) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise AdvCAMError(
                "crf: images must be RGB (N, 3, H, W) uint8 as read from the file, got "
                f"{tuple(images.shape)} {images.dtype}"
            )
        self.recipe: CRFRecipe = lookup(recipe, CRF_RECIPES, "CRF recipe")
        self.images, _, self.height, self.width = images.shape
        self.dtype, self.device = dtype, images.device
        positions = torch.cartesian_prod(*(torch.arange(side, device=images.device) for side in images.shape[2:]))
        positions = positions.flip(1).expand(self.images, -1, -1).to(dtype)
        colors = images.flatten(2).mT.to(dtype)
        bilateral = torch.cat(
            [positions / self.recipe.bilateral_deviation, colors / self.recipe.color_deviation], dim=2
        )
        self.kernels = (
            (self.recipe.spatial_weight, build(positions / self.recipe.spatial_deviation).normalised()),
            (self.recipe.bilateral_weight, build(bilateral).normalised()),
        )

    @torch.no_grad()
    def __call__(self, unary: Tensor, iterations: int | None = None) -> Tensor:
        """Return the marginals Q, ``(N, K, H, W)``, which sum to one over K.

        Args:
            unary: U, ``(N, K, H, W)``, finite; the number of competing labels K may differ between calls.
            iterations: in place of the recipe's.
        """
        size = (self.images, self.height, self.width)
        if unary.ndim != 4 or (len(unary), *unary.shape[2:]) != size or not unary.shape[1]:
            raise AdvCAMError(
                f"crf: the unary must be (N, K, H, W) of {self.images} images of {self.height} x {self.width}, got "
                f"{tuple(unary.shape)}; resize the maps to their images first"
            )
        if unary.device != self.device:
            raise AdvCAMError(f"crf: the unary is on {unary.device}, the images on {self.device}; move one of them")
        if not bool(unary.isfinite().all()):
            raise AdvCAMError("crf: the unary holds values that are not finite; clip scores before taking logarithms")
        rows = unary.to(self.dtype).permute(0, 2, 3, 1).contiguous().reshape(-1, unary.shape[1])
        steps = self.recipe.iterations if iterations is None else iterations
        marginals = mean_field(rows, self.kernels, steps)
        return marginals.reshape(*size, -1).permute(0, 3, 1, 2).contiguous()

    def __repr__(self) -> str:
        return f"DenseCRF({self.images} images of {self.height} x {self.width}, {self.recipe.name!r})"


def unary_from_labels(labels: Tensor, count: int, confidence: float = 0.7) -> Tensor:
    """Return energies of labels with a confidence: ``-ln p`` of the given label, ``-ln((1 - p) / (L - 1))`` of others.

    Args:
        labels: ``(N, H, W)`` integers in ``[0, L)``.
        count: L, the number of competing labels, whether or not they occur; of one label all energies are zero.
        confidence: p; 0.7 in IRN's code.
    """
    if not 0 < confidence < 1:
        raise AdvCAMError(f"crf: the confidence must lie between 0 and 1, got {confidence}")
    if count < 1 or (labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count):
        raise AdvCAMError(
            f"crf: labels from {int(labels.min())} to {int(labels.max())} where {count} compete; number them 0, 1, ..."
        )
    given = labels[:, None] == torch.arange(count, device=labels.device)[:, None, None]
    if count == 1:
        return torch.zeros_like(given, dtype=torch.float32)
    energies = torch.full(given.shape, -math.log((1 - confidence) / (count - 1)), device=labels.device)
    return energies.masked_fill_(given, -math.log(confidence))


def unary_from_scores(scores: Tensor) -> Tensor:
    """Return energies of scores that need not sum to one: ``-ln(clip(score, 1e-5, 1))``, as in PSA's code.

    The clip is pydensecrf's ``unary_from_softmax``.
    """
    return -scores.clamp(1e-5, 1).log()


def unary_from_logits(logits: Tensor) -> Tensor:
    """Return energies of a segmentation net's logits ``(N, K, H, W)``, by their softmax, as in deeplab-pytorch.

    Probabilities are clipped at 1e-5 as in `unary_from_scores`: energies are at most 11.5.
    """
    return unary_from_scores(logits.softmax(1))


def refine_labels(crf: DenseCRF, labels: Tensor, among: Sequence[int], confidence: float = 0.7) -> Tensor:
    """Return label maps after the CRF, each pixel's most probable label (the first of equals): ``(N, H, W)``.

    Args:
        crf: of the images.
        labels: ``(N, H, W)`` integers, each one of ``among``.
        among: the competing labels, e.g. 0 and the image's classes; fewer are faster. They also count in the unary.
        confidence: in the given labels; see `unary_from_labels`.
    """
    competing = torch.as_tensor(among, dtype=torch.long, device=labels.device)
    matches = labels[..., None] == competing
    if not bool(matches.any(-1).all()):
        strange = sorted(set(labels.unique().tolist()) - set(competing.tolist()))
        raise AdvCAMError(f"crf: labels {strange} are not among those that compete, {competing.tolist()}")
    marginals = crf(unary_from_labels(matches.int().argmax(-1), len(competing), confidence))
    return competing.to(labels.dtype)[marginals.argmax(1)]

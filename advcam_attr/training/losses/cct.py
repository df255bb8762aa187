"""Cross-consistency training (CCT): the loss at each step.

Ouali, Hudelot and Tami, CVPR 2020. Labelled images are learned by cross-entropy; on unlabelled ones the auxiliary
decoders are trained to agree with the main one (consistency) and, given pseudo masks, to predict them (weak labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.training.losses.classification import LossTerms
from advcam_attr.training.losses.segmentation import cross_entropy
from advcam_attr.types import VOID

Supervision = Literal["ce", "abce"]


def ramp_up(step: int, steps: int) -> float:
    """Return exp(-5 (1 - s)²) with s = min(step / steps, 1)."""
    s = min(step / steps, 1.0) if steps else 1.0
    return math.exp(-5 * (1 - s) ** 2)


def annealed_threshold(step: int, steps: int, classes: int, end: float = 0.9) -> float:
    """Return abCE's threshold: from 1 / K towards 0.9 by 1 - exp(-5 s) over the first 40 % of the training."""
    s = min(step / (0.4 * steps), 1.0)
    return 1 / classes + (end - 1 / classes) * (1 - math.exp(-5 * s))


def annealed_cross_entropy(scores: Tensor, labels: Tensor, threshold: float, min_kept: int = 1) -> Tensor:
    """Return abCE: the mean cross-entropy of pixels whose class is less probable than a threshold; 0 if none is.

    The threshold is raised if fewer than ``min_kept`` pixels an image are below it.
    Scores are ``(N, K, H, W)``, labels ``(N, H, W)`` in 0..K - 1 or 255.
    """
    target = labels.long()
    counts = target != VOID
    losses = F.cross_entropy(scores, target, ignore_index=VOID, reduction="none")[counts]
    if not len(losses):
        return scores.sum() * 0
    probability = torch.exp(-losses.detach())
    place = min(min_kept * len(scores), len(losses) - 1)
    raised = probability.kthvalue(place + 1).values.clamp(min=threshold)
    kept = probability < raised
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def consistency(scores: Tensor, target: Tensor, confidence: float | None = None) -> Tensor:
    """Return the mean squared difference of softmax(scores) and a target, both ``(N, K, H, W)``.

    The target, the main decoder's probabilities, is detached. Pixels whose most probable class is not above
    ``confidence`` are ignored.
    """
    squares = (scores.softmax(1) - target.detach()) ** 2
    if confidence is None:
        return squares.mean()
    sure = target.detach().amax(1, keepdim=True) > confidence
    return (squares * sure).sum() / (sure.sum() * scores.shape[1]).clamp(min=1)


def disagreement(scores: Tensor, most: int = 8) -> Tensor:
    """Return the pair-wise constraint: the variance over decoders of their probabilities, summed over classes.

    Of the decoders of ``scores``, ``(N, A, K, H, W)``, at most ``most`` are drawn at random.
    """
    chosen = torch.randperm(scores.shape[1])[:most]
    return scores[:, chosen].softmax(2).var(1, correction=0).sum(1).mean()


@dataclass(frozen=True)
class CCTLoss:
    """The loss of a training. With several ranks, each term is the mean of the ranks' own.

    Departure from the released code: there the pair-wise constraint is added after the total was formed and never
    trains; here it is part of the total. No effect unless ``pairwise_weight`` is set.

    Attributes:
        steps: of the whole training.
        ramp_steps: length of the ramp-up of the unlabelled images' weights.
        supervised: ``"ce"``, or ``"abce"`` (annealed, bootstrapped).
        unsupervised_weight: of the consistency, times `ramp_up`.
        weak_weight: of the pseudo masks, times `ramp_up`; 0 for none.
        confidence: see `consistency`.
        pairwise_weight: of `disagreement`; 0 for none.
    """

    steps: int
    ramp_steps: int
    supervised: Supervision = "ce"
    unsupervised_weight: float = 30.0
    weak_weight: float = 0.4
    confidence: float | None = None
    pairwise_weight: float = 0.0

    def at(self, step: int) -> Callable[[Tensor, Tensor], LossTerms]:
        """Return the loss of a step: scores ``(N, 2 + A, K, H, W)`` and labels ``(N, 2, H, W)`` to total and terms."""
        ramp = ramp_up(step, self.ramp_steps)

        def loss(scores: Tensor, labels: Tensor) -> LossTerms:
            first = self._supervised(scores[:, 0], labels[:, 0], step)
            parts = {"supervised": first}
            auxiliary = scores[:, 2:].unbind(1)
            if not auxiliary:
                return LossTerms(first, parts)
            target = scores[:, 1].detach().softmax(1)
            parts["consistency"] = _mean([consistency(one, target, self.confidence) for one in auxiliary])
            total = first + self.unsupervised_weight * ramp * parts["consistency"]
            if self.weak_weight:
                parts["weak"] = _mean([cross_entropy(one, labels[:, 1]) for one in auxiliary])
                total = total + self.weak_weight * ramp * parts["weak"]
            if self.pairwise_weight:
                parts["pairwise"] = disagreement(scores[:, 2:])
                total = total + self.pairwise_weight * parts["pairwise"]
            return LossTerms(total, parts)

        return loss

    def _supervised(self, scores: Tensor, labels: Tensor, step: int) -> Tensor:
        if self.supervised == "ce":
            return cross_entropy(scores, labels)
        return annealed_cross_entropy(scores, labels, annealed_threshold(step, self.steps, scores.shape[1]))


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()

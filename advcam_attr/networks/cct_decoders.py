"""An encoder's features in; class scores at the image's size, of the features as they are or perturbed, out.

Cross-consistency training (Ouali, Hudelot and Tami, "Semi-Supervised Semantic Segmentation with Cross-Consistency
Training", CVPR 2020): every auxiliary decoder sees the features through a perturbation of its own, and learns to say
what the main decoder says of the features as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from advcam_attr.networks.cct_perturbations import Guide, Perturbation
from advcam_attr.types import AdvCAMError


class Decoder(nn.Sequential):
    """A 1 × 1 convolution to K channels, then steps that double the size.

    A step is a 1 × 1 convolution to 4 K channels, a ReLU and a pixel shuffle. The last step has a ReLU too, as in
    the released code: scores are never below 0.

    Args:
        channels: C of the features.
        classes: K.
        steps: the features' stride is 2 ^ steps.

    Example:
        >>> Decoder(8, 3, steps=2)(torch.rand(1, 8, 5, 4)).shape
        torch.Size([1, 3, 20, 16])
    """

    def __init__(self, channels: int, classes: int, steps: int) -> None:
        first = nn.Conv2d(channels, classes, 1, bias=False)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        super().__init__(first, *(_doubling(classes) for _ in range(steps)))


def _doubling(classes: int) -> nn.Sequential:
    convolution = nn.Conv2d(classes, 4 * classes, 1)
    icnr(convolution.weight)
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.PixelShuffle(2))


@torch.no_grad()
def icnr(weight: Tensor, factor: int = 2) -> None:
    """Fill a sub-pixel convolution's weights so that the pixels of each cell begin alike, without a checkerboard.

    Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017.

    Args:
        weight: ``(C · factor², C', 1, 1)``, changed in place; Kaiming-normal, each kernel ``factor²`` times.
        factor: of the pixel shuffle behind it.
    """
    kernels = torch.empty(len(weight) // factor**2, *weight.shape[1:], dtype=weight.dtype, device=weight.device)
    nn.init.kaiming_normal_(kernels)
    weight.copy_(kernels.repeat_interleave(factor**2, dim=0))


class AuxiliaryDecoder(nn.Module):
    """A decoder behind a perturbation.

    Args:
        perturbation: see `PERTURBATIONS`.
        decoder: of the main decoder's shape, with weights of its own.
    """

    def __init__(self, perturbation: Perturbation, decoder: Decoder) -> None:
        super().__init__()
        self.perturbation, self.decoder = perturbation, decoder

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        """Features ``(N, C, h, w)`` to scores ``(N, K, H, W)``."""
        scores: Tensor = self.decoder(self.perturbation(x, guide, self.decoder))
        return scores

    def extra_repr(self) -> str:
        """The perturbation, for ``print(net)``."""
        return repr(self.perturbation)


def doubling_steps(stride: int) -> int:
    """How often a size is doubled until a map of some stride is as large as its image.

    Raises:
        AdvCAMError: the stride is no power of two.

    Example:
        >>> doubling_steps(8)
        3
    """
    steps = round(math.log2(stride)) if stride > 0 else -1
    if 2**steps != stride:
        raise AdvCAMError(f"decoders double sizes, so the encoder's stride must be a power of two, got {stride}")
    return steps

"""ResNet-38, the pre-activation trunk of PSA, SEAM and SC-CAM.

The "wide ResNet-38" of Wu et al. (2016) with its last strides turned into dilation ("resnet38d"): stride 8, ReLU and
batch norm before the convolutions. Parameters have the names of the authors' files.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

#: The blocks before the first tap.
_EARLY = ("b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2", "b4", "b4_1", "b4_2", "b4_3", "b4_4", "b4_5")


class ResNet38Features(NamedTuple):
    """Rectified features at stride 8: the inputs of the bodies of blocks ``b5`` and ``b6``, and the last.

    Their channels are 8, 16 and 64 times the width: 512, 1024 and 4096.
    """

    conv4: Tensor
    conv5: Tensor
    conv6: Tensor


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a skip: ``branch(h) + skip`` with ``h = relu(bn(x))``.

    The skip is ``x``, or a 1 x 1 convolution of ``h`` where the shape changes.
    """

    def __init__(
        self, entering: int, middle: int, leaving: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilations
        self.bn_branch2a = nn.BatchNorm2d(entering)
        self.conv_branch2a = nn.Conv2d(entering, middle, 3, stride, first, first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, leaving, 3, 1, second, second, bias=False)
        same = entering == leaving and stride == 1
        self.conv_branch1 = None if same else nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, self.rectified(x))

    def rectified(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_branch2a(x))

    def body(self, x: Tensor, h: Tensor) -> Tensor:
        skip = x if self.conv_branch1 is None else self.conv_branch1(h)
        return self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(h)))) + skip


class Bottleneck(nn.Module):
    """As `Block`, with convolutions 1 x 1, 3 x 3 (dilated) and 1 x 1 and dropout before the last two."""

    def __init__(self, entering: int, leaving: int, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = leaving // 4, leaving // 2
        self.bn_branch2a = nn.BatchNorm2d(entering)
        self.conv_branch2a = nn.Conv2d(entering, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, 1, dilation, dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(half, leaving, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(entering, leaving, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.rectified(x))

    def rectified(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_branch2a(x))

    def body(self, h: Tensor) -> Tensor:
        inner = self.dropout_2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(h))))
        inner = self.dropout_2b2(F.relu(self.bn_branch2b2(self.conv_branch2b1(inner))))
        return self.conv_branch2b2(inner) + self.conv_branch1(h)


class ResNet38(nn.Module):
    """The trunk; nets with a head inherit from it, so that its parameters keep their names.

    ``width`` is the channels of the first convolution, of which all others are multiples; the published nets have 64.
    """

    #: Image pixels a cell of the features, and where maps lie: SEAM trains with aligned corners, the centres' layout.
    stride: ClassVar[int] = 8
    cell_layout: ClassVar[str] = "centres"
    #: The normalization of the images, RGB in [0, 1].
    mean: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    #: The modules whose rectified outputs are conv4 and conv5.
    taps: ClassVar[tuple[str, str]] = ("b5.bn_branch2a", "b6.bn_branch2a")

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.conv1a = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self._stage("b2", width, 2 * width, repeats=2)
        self._stage("b3", 2 * width, 4 * width, repeats=2)
        self._stage("b4", 4 * width, 8 * width, repeats=5)
        self.b5 = Block(8 * width, 8 * width, 16 * width, dilations=(1, 2))
        self.b5_1 = Block(16 * width, 8 * width, 16 * width, dilations=(2, 2))
        self.b5_2 = Block(16 * width, 8 * width, 16 * width, dilations=(2, 2))
        self.b6 = Bottleneck(16 * width, 32 * width, dilation=4, dropout=0.3)
        self.b7 = Bottleneck(32 * width, 64 * width, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(64 * width)

    def _stage(self, name: str, entering: int, leaving: int, repeats: int) -> None:
        self.add_module(name, Block(entering, leaving, leaving, stride=2))
        for i in range(repeats):
            self.add_module(f"{name}_{i + 1}", Block(leaving, leaving, leaving))

    def features(self, x: Tensor) -> ResNet38Features:
        """Return the features of images ``(N, 3, H, W)``, of ``ceil(H / 8)`` by ``ceil(W / 8)`` cells."""
        x = self.conv1a(x)
        for name in _EARLY:
            x = self.get_submodule(name)(x)
        conv4 = self.b5.rectified(x)
        x = self.b5_2(self.b5_1(self.b5.body(x, conv4)))
        conv5 = self.b6.rectified(x)
        x = self.b7(self.b6.body(conv5))
        return ResNet38Features(conv4, conv5, F.relu(self.bn7(x)))

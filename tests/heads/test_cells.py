"""Cells over the image: receptive-field arithmetic against the pixels that reach a cell."""

import copy

import pytest
import timm
import torch
from torch import nn

from advcam_attr.heads import view
from advcam_attr.heads.cells import blocks_of, whole_cells
from advcam_attr.networks.sc_cam import SCCAM
from advcam_attr.networks.seam import SEAM
from advcam_attr.types import Cells


class Joined(nn.Module):
    """Two paths of one centre, joined by a sum; a gate of another grid does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.gate = nn.Conv2d(2, 2, 5, 2, 2), nn.Conv2d(2, 2, 1, 2), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        joined = self.wide(x) + self.narrow(x)
        return joined * self.gate(joined.detach().mean((2, 3), keepdim=True)).sigmoid()


class Merged(nn.Module):
    """Patch merging by slices, as in torchvision's Swin."""

    def forward(self, x):
        x = nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.cat(parts, 1).unflatten(1, (4, -1)).sum(1)


class Reshaped(nn.Module):
    """Patch merging by a reshape, which cannot be followed."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def padded(kernel: int, **options) -> nn.Module:
    return nn.Conv2d(2, 2, kernel, **options)


TRUNKS = {
    "centred": [padded(3, stride=2, padding=1), padded(3, stride=2, padding=1), padded(3, padding=1)],
    "blocks": [padded(4, stride=4), padded(2, stride=2)],
    "valid": [padded(3, stride=2), padded(5), padded(3, stride=2)],
    "dilated": [padded(7, stride=2, padding=3), padded(3, padding=4, dilation=4), padded(3, padding=1, dilation=2)],
    "pools": [padded(3, padding="same"), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True)],
    "asymmetric": [nn.ZeroPad2d((0, 1, 2, 1)), padded(3, stride=2), nn.ZeroPad2d((1, 2, 0, 3)), padded(5, stride=2)],
    "anisotropic": [padded((3, 5), stride=(2, 1), padding=(1, 2)), padded((4, 1), stride=(4, 1))],
    "resized": [padded(3, stride=2, padding=1), nn.Upsample(scale_factor=2), nn.AvgPool2d(4)],
    "joined": [Joined(), padded(3, stride=2, padding=1)],
    "merged": [padded(4, stride=4), Merged()],
}


def classifier(trunk: list[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 2, 1), *trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("size", [(60, 85), (64, 96)])
def test_centres_are_the_middle_of_the_pixels_that_reach_a_cell(name, size):
    net = classifier(copy.deepcopy(TRUNKS[name])).double()
    x = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True)
    found = view(net).cells(x.detach())
    features = net[:-3](x).sum(1)[0]
    h, w = features.shape
    for row, column in ((h // 2, w // 2), (h // 2 - 1, w // 2 + 1)):
        (gradient,) = torch.autograd.grad(features[row, column], x, retain_graph=True)
        reached = (gradient.abs().sum((0, 1)) > 1e-12).nonzero().double()
        middle = (reached.amin(0) + reached.amax(0)) / 2
        at = [found.offset[axis] + found.stride[axis] * place for axis, place in enumerate((row, column))]
        assert at == pytest.approx(middle.tolist(), abs=0.51 if name == "resized" else 1e-9)


@pytest.mark.parametrize(
    ("make", "size", "offset", "stride"),
    [
        (lambda: SEAM(20, 2), (375, 500), (0, 0), (8, 8)),
        (lambda: SCCAM(20, 0, 2), (375, 500), (0, 0), (8, 8)),
        (lambda: timm.create_model("resnet18"), (375, 500), (0, 0), (32, 32)),
        (lambda: timm.create_model("convnext_atto"), (375, 500), (15.5, 15.5), (32, 32)),  # 11 x 15 cells
        # TensorFlow's padding depends on the size: 1 below and right of an even side, 1 around an odd one
        (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100"), (64, 72), (31, 7), (32, 32)),
        # what cannot be followed is taken for blocks
        (lambda: classifier([padded(4, stride=4), Reshaped()]), (64, 96), (3.5, 3.5), (8, 8)),
        (lambda: classifier([padded(4, stride=4), Reshaped()]), (16, 16), (3.5, 3.5), (8, 8)),
    ],
)  # fmt: skip
def test_golden_cells(make, size, offset, stride):
    assert view(make().eval()).cells(torch.zeros(1, 3, *size)) == Cells(offset, stride)


def test_cells_do_not_run_the_model_again():
    net = classifier(copy.deepcopy(TRUNKS["centred"]))
    one = view(net)
    one.inspect(torch.rand(1, 3, 32, 32))
    calls = []
    net[0]._conv_forward = lambda x, weight, bias: calls.append(x.device.type) or nn.functional.conv2d(x, weight, bias)
    assert one.cells(torch.rand(1, 3, 32, 32)) == Cells((0, 0), (4, 4))
    assert set(calls) == {"meta"}, "shapes alone"


def test_cells_in_blocks():
    cells = Cells((0, 15), (8, 16))
    assert blocks_of(cells, (63, 14), (500, 224)) == Cells((3.5, 7.5), (8, 16))
    assert blocks_of(cells, (62, 13), (500, 224)) == Cells((3.5, 15), (8, 16)), "a border of 15 pixels is lost"


@pytest.mark.parametrize(
    ("grid", "size", "side"),
    [((63, 47), (500, 375), (8, 8)), ((15, 11), (500, 375), (32, 32)), ((10, 7), (50, 35), (5, 5))],
)
def test_whole_cells(grid, size, side):
    """A power of two that rounds up, one that rounds down, and a stretched grid."""
    assert whole_cells(grid, size) == Cells(((side[0] - 1) / 2, (side[1] - 1) / 2), side)

"""Axes followed through the forward: grids, layouts and channels whatever the sizes are, and an oracle of both."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.volo import VOLO
from torch import Tensor, nn

from advcam_attr import heads
from advcam_attr.heads import Reason
from advcam_attr.types import AdvCAMError
from probe import misplaced


class Net(nn.Module):
    """A trunk of one convolution, and a head given as a function of its output and of parts."""

    def __init__(self, head, channels: int = 6, kernel=(32, 32), **parts: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, channels, kernel, kernel), nn.GELU())
        self.parts = nn.ModuleDict(parts)
        self.head = head
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x), self.parts)


def tokens(f: Tensor) -> Tensor:
    return f.flatten(2).transpose(1, 2)


def nhwc(f: Tensor) -> Tensor:
    return f.permute(0, 2, 3, 1)


def inspect(make, size: tuple[int, int], layer: str | None = None) -> heads.Head:
    """Return the head of a model on the meta device."""
    with torch.device("meta"):
        net = make().eval()
    return heads.view(net, layer).inspect(torch.empty(1, 3, *size, device="meta"))


def attention(f: Tensor, p: nn.ModuleDict) -> Tensor:
    return p["a"](tokens(f)).softmax(1)


class Query(nn.Module):
    """A learned query that attends to all tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, channels))
        self.attention = nn.MultiheadAttention(channels, 8, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.attention(self.query.expand(len(z), -1, -1), z, z)[0][:, 0]


WEIGHTED = {
    "bmm": lambda f, p: p["fc"](torch.bmm(attention(f, p).mT, tokens(f))[:, 0]),
    "matmul": lambda f, p: p["fc"]((f.flatten(2) @ attention(f, p))[..., 0]),
    "einsum": lambda f, p: p["fc"](torch.einsum("nlc,nlo->nc", tokens(f), attention(f, p))),
    "query": lambda f, p: p["fc"](p["query"](tokens(f))),
}


@pytest.mark.parametrize("form", WEIGHTED)
@pytest.mark.parametrize(
    ("channels", "size"),
    [(368, (224, 224)), (1024, (224, 224)), (768, (192, 256)), (512, (128, 256)), (2048, (256, 128))],
)
def test_attention_pooling_keeps_the_grid_and_the_channels(form, channels, size):
    def net():
        return Net(
            WEIGHTED[form], channels, a=nn.Linear(channels, 1), query=Query(channels), fc=nn.Linear(channels, 4)
        )  # fmt: skip

    head = inspect(net, size)
    assert (head.grid, head.channels, head.reason) == ((size[0] // 32, size[1] // 32), channels, Reason.WEIGHTED)
    assert head.layer == "trunk"


def _shuffled(f: Tensor) -> Tensor:
    """Windows of 2 x 2 cells one after the other, as hierarchical transformers order them."""
    n, c, h, w = f.shape
    return f.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).flatten(1, 4)


def _crossed(f: Tensor, p: nn.ModuleDict) -> Tensor:
    """Attention of windows to themselves, and back to the image."""
    n, c, h, w = f.shape
    z = F.pad(f.permute(0, 2, 3, 1), (0, 0, 0, -w % 3, 0, -h % 3)).roll((-1, -1), (1, 2))
    z = z.unflatten(1, (-1, 3)).unflatten(3, (-1, 3)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
    z = p["norm"](F.scaled_dot_product_attention(z, z, z) + 3 * z)
    z = z.view(n, -(-h // 3), -(-w // 3), 3, 3, c).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    z = z.roll((1, 1), (1, 2))[:, :h, :w]
    return p["fc"](z.mean((1, 2)))


def _deep(f: Tensor) -> Tensor:
    n, c, h, w = f.shape
    f = f.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return f.view(n, c * 4, h // 2, w // 2)


def _sliced(f: Tensor) -> Tensor:
    return torch.cat([f[..., ::2, ::2], f[..., 1::2, 1::2]], 1)


def _assigned(f: Tensor) -> Tensor:
    buffer = f.new_zeros(len(f), f.shape[2] * f.shape[3] + 1, f.shape[1])
    buffer[:, 1:] = tokens(f)
    return buffer


#: By name: the head, the image, and layout, grid and channels of what is mapped.
GRIDS = {
    "scores of 6 classes": (lambda f, p: p["six"](nhwc(f)).amax((1, 2)), (224, 224), "NHWC", (7, 7), 6),
    "scores of 7 classes": (lambda f, p: p["seven"](nhwc(f)).amax((1, 2)), (224, 224), "NHWC", (7, 7), 7),
    "scores of 8 classes": (lambda f, p: p["eight"](nhwc(f)).amax((1, 2)), (224, 224), "NHWC", (7, 7), 8),
    "(N, W, H, C)": (lambda f, p: p["fc"](nhwc(f.mT).mean((1, 2))), (96, 224), "NWHC", (3, 7), 6),
    "(N, C, W, H)": (lambda f, p: p["fc"](f.mT.mean((2, 3))), (96, 224), "NCWH", (3, 7), 6),
    "column by column": (lambda f, p: p["fc"](f.mT.flatten(2).mean(2)), (96, 224), "NCL", (3, 7), 6),
    "window by window": (lambda f, p: p["fc"](_shuffled(f).mean(1)), (128, 192), "NLC", (4, 6), 6),
    "a side of channels": (lambda f, p: p["fc"](nhwc(f).mean((1, 2))), (192, 192), "NHWC", (6, 6), 6),
    "tokens first": (lambda f, p: p["fc"](f.flatten(2).permute(2, 0, 1).mean(0)), (96, 224), "LNC", (3, 7), 6),
    "windows with padding": (_crossed, (160, 224), "NHWC", (5, 7), 6),
    "assigned": (lambda f, p: p["fc"](_assigned(f)[:, 1:].mean(1)), (96, 224), "NLC", (3, 7), 6),
    "space to depth": (lambda f, p: p["deep"](F.pixel_unshuffle(f, 2).mean((2, 3))), (128, 256), "NCHW", (2, 4), 24),
    "depth by views": (lambda f, p: p["deep"](_deep(f).mean((2, 3))), (128, 256), "NCHW", (2, 4), 24),
    "slices": (lambda f, p: p["two"](_sliced(f).mean((2, 3))), (128, 256), "NCHW", (2, 4), 12),
    "patches": (lambda f, p: p["deep"](F.unfold(f, 2, stride=2).mean(2)), (128, 256), "NCL", (2, 4), 24),
    "one row": (lambda f, p: p["fc"](f.mean((2, 3))), (32, 224), "NCHW", (1, 7), 6),
    "one column": (lambda f, p: p["fc"](tokens(f).mean(1)), (224, 32), "NLC", (7, 1), 6),
    "width, then height": (lambda f, p: p["fc"](f.mean(3).mean(2)), (96, 224), "NCHW", (3, 7), 6),
    "height, then width": (lambda f, p: p["fc"](f.mean(2, True).mean(3).flatten(1)), (96, 224), "NCHW", (3, 7), 6),
    "height, then a net": (lambda f, p: p["fc"](p["rnn"](f.mean(2).mT)[0].mean(1)), (96, 224), "NLC", (1, 7), 6),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_followed(name):
    head, size, layout, grid, channels = GRIDS[name]
    torch.manual_seed(0)
    parts = {"six": nn.Linear(6, 6), "seven": nn.Linear(6, 7), "eight": nn.Linear(6, 8), "fc": nn.Linear(6, 4)}
    parts |= {"deep": nn.Linear(24, 4), "two": nn.Linear(12, 4), "norm": nn.LayerNorm(6)}
    net = Net(head, rnn=nn.LSTM(6, 6, batch_first=True), **parts).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    view = heads.view(net)
    found = view.inspect(x)
    assert (found.layout, found.grid, found.channels) == (layout, grid, channels)
    assert found.stride == (size[0] / grid[0], size[1] / grid[1])
    acts = view(x)
    assert acts.features.shape == (2, channels, *grid)
    scores = acts.logits[:, 1]
    gradient = acts.gradient(scores)
    assert gradient.shape == acts.features.shape
    if found.exactness == "exact":
        target = torch.tensor([1, 1])
        constants = scores - acts.class_map(target).mean((1, 2))
        assert torch.allclose(constants[:1], constants[1:], atol=1e-12)
        assert torch.allclose(gradient.sum((2, 3)), acts.class_weights(target), atol=1e-12)
    assert found.exactness == ("none" if "scores" in name else "exact")
    assert misplaced(net, x[:1]) == []


@pytest.mark.parametrize("size", [(161, 500), (100, 480), (70, 125), (200, 333), (33, 500)])
def test_flattened_means_at_any_size(size):
    found = inspect(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(2), Mean(-1), nn.Linear(6, 4)), size
    )
    assert (found.exactness, found.layout, found.grid) == ("exact", "NCL", ((size[0] + 1) // 2, (size[1] + 1) // 2))


class Mean(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def small_swin(size: tuple[int, int]) -> nn.Module:
    options = {"img_size": size, "depths": (2, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 3, 6)}
    return timm.create_model("swin_tiny_patch4_window7_224", **options)


def volo(side: int):
    """As ``volo_d4_*``, with a block a stage: 2304 units of its MLP are 48 x 48."""
    options = {"embed_dims": (384, 768, 768, 768), "num_heads": (12, 16, 16, 16), "img_size": side}
    return lambda: VOLO(layers=(1, 1, 1, 1), **options)


def transformer(name: str, **options):
    return lambda: timm.create_model(name, dynamic_img_size=True, depth=2, **options)


@pytest.mark.parametrize(
    ("make", "size", "grid", "prefix", "channels"),
    [
        (transformer("vit_small_patch14_reg4_dinov2", num_classes=4, img_size=224), (70, 168), (5, 12), 5, 384),
        (transformer("deit_tiny_distilled_patch16_224"), (32, 160), (2, 10), 2, 192),
        (transformer("vit_tiny_patch16_224", class_token=False, global_pool="avg"), (48, 160), (3, 10), 0, 192),
        (transformer("vit_small_r26_s32_224", img_size=(64, 160)), (64, 160), (2, 5), 1, 384),
        (volo(224), (224, 224), (14, 14), 1, 768),
        (volo(448), (448, 448), (28, 28), 1, 768),
        (lambda: small_swin((64, 160)), (64, 160), (2, 5), 0, 192),
    ],
)  # fmt: skip
def test_tokens_before_the_grid_are_told_apart(make, size, grid, prefix, channels):
    found = inspect(make, size)
    assert (found.grid, found.prefix, found.channels) == (grid, prefix, channels)


def spectrogram(pool: nn.Module) -> nn.Sequential:
    """A net whose grid is not of the image's shape."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d((4, 1)), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d((4, 1)), pool, nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


@pytest.mark.parametrize("layer", [None, "5"])
@pytest.mark.parametrize(("pool", "exactness"), [(nn.AdaptiveAvgPool2d, "exact"), (nn.AdaptiveMaxPool2d, "none")])
def test_grids_of_another_shape_than_the_image(layer, pool, exactness):
    found = inspect(lambda: spectrogram(pool(1)), (64, 50), layer)
    assert (found.layer, found.grid, found.channels, found.stride) == ("5", (4, 50), 12, (16, 1))
    assert layer or found.exactness == exactness


@pytest.mark.parametrize("channels", [49, 64, 256])
@pytest.mark.parametrize("layer", [None, "parts.act"])
def test_channels_before_tokens(channels, layer):
    """(N, C, L) with as many channels as a square has cells."""
    found = inspect(
        lambda: Net(
            lambda f, p: p["fc"](p["act"](f.flatten(2)).amax(2)), channels, act=nn.ReLU(), fc=nn.Linear(channels, 4)
        ),
        (224, 224),
        layer,
    )
    assert (found.layout, found.grid, found.channels) == ("NCL", (7, 7), channels)


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x).abs()


def test_what_cannot_be_followed_is_named():
    def net():
        return nn.Sequential(nn.Conv2d(3, 6, 4, 4), Sorted(), nn.Conv2d(6, 6, 1), Mean(2, 3), nn.Linear(6, 4))

    for layer in (None, "2"):
        with pytest.raises(AdvCAMError, match="cannot be followed through 'fft_rfft2'"):
            inspect(net, (64, 64), layer)
    assert inspect(net, (64, 64), "0").grid == (16, 16)


@pytest.mark.parametrize("size", [(64, 160), (128, 128)])
@pytest.mark.parametrize(
    "make",
    [
        small_swin,
        lambda size: timm.create_model("vit_tiny_patch16_224", img_size=size, depth=2),
        lambda _size: timm.create_model("resnet10t"),
    ],
)
def test_a_moved_patch_moves_its_cell(make, size):
    """An oracle that knows nothing of axes."""
    torch.manual_seed(0)
    assert misplaced(make(size).eval(), torch.randn(1, 3, *size)) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 160), (128, 128)])
@pytest.mark.parametrize(
    "name", ["densenet121", "xcit_nano_12_p16_224", "pvt_v2_b0", "levit_128s", "coatnet_nano_rw_224"]
)
def test_a_moved_patch_moves_its_cell_in_large_nets(name, size):
    torch.manual_seed(0)
    options = {"img_size": size} if name.startswith(("levit", "coat")) else {}
    assert misplaced(timm.create_model(name, **options).eval(), torch.randn(1, 3, *size)) == []

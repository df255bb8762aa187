"""ResNet-38 (Wu et al.) written out slowly from the table of its blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.networks.resnet38 import ResNet38

#: in, middle, out, stride, dilation of the first and of the second convolution.
BLOCKS = {
    "b2": (64, 128, 128, 2, 1, 1), "b2_1": (128, 128, 128, 1, 1, 1), "b2_2": (128, 128, 128, 1, 1, 1),
    "b3": (128, 256, 256, 2, 1, 1), "b3_1": (256, 256, 256, 1, 1, 1), "b3_2": (256, 256, 256, 1, 1, 1),
    "b4": (256, 512, 512, 2, 1, 1),
    **{f"b4_{i}": (512, 512, 512, 1, 1, 1) for i in (1, 2, 3, 4, 5)},
    "b5": (512, 512, 1024, 1, 1, 2), "b5_1": (1024, 512, 1024, 1, 2, 2), "b5_2": (1024, 512, 1024, 1, 2, 2),
}  # fmt: skip


BOTTLENECKS = {"b6": (1024, 2048), "b7": (2048, 4096)}


def norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return parts | {f"{name}.num_batches_tracked": ()}


def trunk_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv1a.weight": (64, 3, 3, 3)} | norm_shapes("bn7", 4096)
    for name, (entering, middle, leaving, _, _, _) in BLOCKS.items():
        shapes |= norm_shapes(f"{name}.bn_branch2a", entering) | norm_shapes(f"{name}.bn_branch2b1", middle)
        shapes[f"{name}.conv_branch2a.weight"] = (middle, entering, 3, 3)
        shapes[f"{name}.conv_branch2b1.weight"] = (leaving, middle, 3, 3)
        if entering != leaving:
            shapes[f"{name}.conv_branch1.weight"] = (leaving, entering, 1, 1)
    for name, (entering, leaving) in BOTTLENECKS.items():
        shapes |= norm_shapes(f"{name}.bn_branch2a", entering)
        shapes |= norm_shapes(f"{name}.bn_branch2b1", leaving // 4) | norm_shapes(f"{name}.bn_branch2b2", leaving // 2)
        shapes[f"{name}.conv_branch2a.weight"] = (leaving // 4, entering, 1, 1)
        shapes[f"{name}.conv_branch2b1.weight"] = (leaving // 2, leaving // 4, 3, 3)
        shapes[f"{name}.conv_branch2b2.weight"] = (leaving, leaving // 2, 1, 1)
        shapes[f"{name}.conv_branch1.weight"] = (leaving, entering, 1, 1)
    return shapes


def randomised(net: ResNet38, seed: int = 0) -> ResNet38:
    """Norms with statistics and affine parts that matter; float64; eval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.7, 1.3), (module.bias, -0.3, 0.3),
                    (module.running_mean, -0.3, 0.3), (module.running_var, 0.3, 0.8),
                ):  # fmt: skip
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
            if isinstance(module, nn.Conv2d):
                fan = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * fan**-0.5)
    return net.double().eval()


def slow_features(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The trunk, written out from its equations and the table of its blocks."""

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (weight * (x - mean) / (var + 1e-5).sqrt() + bias).clamp_min(0)

    def conv(name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        kernel = state[f"{name}.weight"]
        side = dilation * (kernel.shape[2] // 2)
        return F.conv2d(F.pad(x, (side, side, side, side)), kernel, None, stride, 0, dilation)

    taps = {}
    x = conv("conv1a", x)
    for name, (entering, _, leaving, stride, first, second) in BLOCKS.items():
        h = taps[name] = norm(f"{name}.bn_branch2a", x)
        skip = x if entering == leaving else conv(f"{name}.conv_branch1", h, stride)
        inner = norm(f"{name}.bn_branch2b1", conv(f"{name}.conv_branch2a", h, stride, first))
        x = skip + conv(f"{name}.conv_branch2b1", inner, 1, second)
    for name in BOTTLENECKS:
        h = taps[name] = norm(f"{name}.bn_branch2a", x)
        inner = norm(f"{name}.bn_branch2b1", conv(f"{name}.conv_branch2a", h))
        inner = norm(f"{name}.bn_branch2b2", conv(f"{name}.conv_branch2b1", inner, 1, 4))
        x = conv(f"{name}.conv_branch1", h) + conv(f"{name}.conv_branch2b2", inner)
    return taps["b5"], taps["b6"], norm("bn7", x)

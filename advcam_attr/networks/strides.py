"""Output strides: measuring a net's, and lowering it by removing the last strides.

Shapes are found by running a copy of the net on the meta device, where a forward needs no arithmetic and the net itself
is never changed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Sizes of the images that strides are measured with: multiples of every usual stride and window.
_SIZES = (256, 384)

#: Raised by a forward that does not take images of some size, or whose branches no longer fit each other.
_MISFITS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)

#: Computes the feature map ``(N, C, h, w)`` of a net.
FeatureMap = Callable[[nn.Module, Tensor], Tensor]


def forward(net: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = net(x)
    return out


def output_stride(net: nn.Module, features: FeatureMap = forward) -> int | None:
    """Return the distance in pixels between neighboring cells of the feature map; None for nets of one image size.

    Two image sizes are compared, so that nets without padding, whose maps are a little smaller, are measured alike.
    """
    return _stride(shape_twin(net), features)


def remove_strides(net: nn.Module, stride: int, features: FeatureMap = forward) -> bool:
    """Set the last strides of a net to 1, without dilation, until its output stride is ``stride``.

    Of the strided convolutions and pools whose input is already at ``stride``, the fewest that suffice lose their
    stride, the last in the forward first; parallel branches lose theirs together. Where a module would give a smaller
    map without its stride (a 2 × 2 convolution or pool without padding), the border is replicated to the right and
    below, so that every second cell of its new map is the old map. Names of weights stay the same.

    Returns:
        Whether the net, changed in place, now has this stride. False, and no change, if no set of strides does it:
        patch merging by slicing, branches with upsampling, a patch embedding beyond the stride.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.MaxPool2d(2))
        >>> remove_strides(net, 2), net(torch.zeros(1, 3, 8, 8)).shape
        (True, torch.Size([1, 4, 4, 4]))
    """
    twin = shape_twin(net)
    strided = _strided(twin, stride, features)
    suffixes = (strided[i:] for i in range(len(strided) - 1, -1, -1))
    chosen = next((names for names in suffixes if _fits(twin, names, stride, features)), None)
    if chosen is None:
        return False
    for name in list(chosen):  # branches that the stride does not depend on keep theirs
        others = [other for other in chosen if other != name]
        if others and _fits(twin, others, stride, features):
            chosen = others
    pads = _pads(twin, chosen, features)
    for name in chosen:
        _remove_stride(net, name, pads[name])
    return True


def execution_order(net: nn.Module, features: FeatureMap = forward, size: int = _SIZES[0]) -> dict[str, int]:
    """Return when each module of a net is first called in a forward, from 0, without modules that are not called."""
    twin = shape_twin(net)
    order: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            order.setdefault(name, len(order))

        return see

    with _hooked(module.register_forward_pre_hook(hook(name)) for name, module in twin.named_modules()):
        _run(twin, size, features)
    return order


def shape_twin(net: nn.Module) -> nn.Module:
    """Return a copy of a net, in eval mode, on the meta device: it computes shapes only."""
    return copy.deepcopy(net).to("meta").eval()


def _run(twin: nn.Module, size: int, features: FeatureMap) -> Tensor:
    with torch.no_grad():
        return features(twin, torch.zeros(1, 3, size, size, device="meta"))


def _stride(twin: nn.Module, features: FeatureMap) -> int | None:
    try:
        grids = [_run(twin, size, features).shape[-2:] for size in _SIZES]
    except _MISFITS:
        return None
    (small, small_w), (large, large_w) = grids
    if large <= small or large - small != large_w - small_w or (_SIZES[1] - _SIZES[0]) % (large - small):
        return None
    return int((_SIZES[1] - _SIZES[0]) // (large - small))


def _strided(twin: nn.Module, stride: int, features: FeatureMap) -> list[str]:
    """Leaf modules with a stride whose input is at ``stride`` or coarser, in the order of the forward."""
    found: dict[str, None] = {}

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            x = args[0] if args else None
            if not (isinstance(x, Tensor) and isinstance(out, Tensor) and x.ndim == out.ndim == 4):
                return
            if round(_SIZES[0] / x.shape[-1]) >= stride and out.shape[-1] < x.shape[-1]:
                found.setdefault(name)

        return see

    leaves = ((n, m) for n, m in twin.named_modules() if _has_stride(m) and not any(m.children()))
    with _hooked(module.register_forward_hook(hook(name)) for name, module in leaves):
        _run(twin, _SIZES[0], features)
    return list(found)


def _has_stride(module: nn.Module) -> bool:
    stride = getattr(module, "stride", 1)
    return (max(stride) if isinstance(stride, (tuple, list)) else stride) > 1


def _fits(twin: nn.Module, names: list[str], stride: int, features: FeatureMap) -> bool:
    trial = copy.deepcopy(twin)
    try:
        pads = _pads(trial, names, features)
        for name in names:
            _remove_stride(trial, name, pads[name])
    except _MISFITS:
        return False
    return _stride(trial, features) == stride


def _pads(twin: nn.Module, names: list[str], features: FeatureMap) -> dict[str, int]:
    """Return how many cells smaller than its input each module's map would be without its stride."""
    pads: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            alone = copy.deepcopy(module)
            alone._forward_hooks.clear()
            _unstride(alone)
            pads[name] = args[0].shape[-1] - alone(args[0]).shape[-1]

        return see

    with _hooked(twin.get_submodule(name).register_forward_hook(hook(name)) for name in names):
        _run(twin, _SIZES[0], features)
    return pads


def _unstride(module: Any) -> None:
    module.stride = (1, 1) if isinstance(module.stride, (tuple, list)) else 1


def _remove_stride(net: nn.Module, name: str, pad: int) -> None:
    module: Any = net.get_submodule(name)
    _unstride(module)
    if pad <= 0:
        return
    if not isinstance(module, nn.Conv2d):
        padded: nn.Module = PaddedPool(module, pad)
    elif type(module) is nn.Conv2d:
        padded = PaddedConv2d.of(module, pad)
    else:
        raise ValueError(f"{type(module).__name__} pads by rules of its own")
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, padded)


class PaddedConv2d(nn.Conv2d):
    """A convolution that first replicates its input's border to the right and below."""

    extra: int

    @classmethod
    def of(cls, conv: nn.Conv2d, extra: int) -> PaddedConv2d:
        padded = cls.__new__(cls)
        padded.__dict__.update(conv.__dict__)
        padded.extra = extra
        return padded

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_replicated(x, self.extra))


class PaddedPool(nn.Module):
    """A pool that first replicates its input's border to the right and below."""

    def __init__(self, pool: nn.Module, extra: int) -> None:
        super().__init__()
        self.pool, self.extra = pool, extra

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(_replicated(x, self.extra))
        return pooled


def _replicated(x: Tensor, extra: int) -> Tensor:
    return F.pad(x, (0, extra, 0, extra), mode="replicate")


@contextlib.contextmanager
def _hooked(handles: Iterable[Any]) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

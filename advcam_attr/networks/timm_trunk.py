"""timm models as feature extractors, at a wanted output stride."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.load import load_configured
from advcam_attr.networks.loaded_model import LoadedModel
from advcam_attr.networks.sources import ModelArgsError
from advcam_attr.networks.strides import output_stride, remove_strides
from advcam_attr.types import AdvCAMError

#: Arguments with which models that are published for one image size take any; each family has its own.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
)


@dataclass(frozen=True)
class FeatureReader:
    """Computes the feature map ``(N, C, h, w)`` of a timm model without classifier and pooling.

    Attributes:
        method: the model's method that gives the features, in this layout.
        prefix: the number of tokens before those of the grid.
        stride: the model's own output stride, by which tokens form a grid.
    """

    method: Literal["forward", "forward_features"]
    layout: Literal["NCHW", "NHWC", "NLC"]
    channels: int
    prefix: int
    stride: int

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = getattr(model, self.method)(x)
        if self.layout == "NHWC":
            return out.permute(0, 3, 1, 2)
        if self.layout == "NLC":
            grid = [-(-side // self.stride) for side in x.shape[2:]]
            return out[:, self.prefix :].transpose(1, 2).unflatten(2, grid)
        return out


@dataclass(frozen=True)
class TimmTrunk:
    """A model without classifier and pooling, with the reader of its features, its output stride and normalization.

    Attributes:
        size: a side length of images that it takes.
        classifier: what was removed; an identity if there is none to start from.
    """

    model: nn.Module
    reader: FeatureReader
    stride: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classifier: nn.Module = field(default_factory=nn.Identity)


def timm_trunk(backbone: Backbone) -> TimmTrunk:
    """Load a timm model, remove its classifier and pooling, and lower its output stride."""
    name, stride = backbone.name, backbone.max_stride
    dilated = backbone.stride_mode == "dilation" and stride is not None
    try:
        loaded = _load(backbone, {"output_stride": stride} if dilated else {})
    except ModelArgsError as error:
        if not dilated:
            raise
        raise AdvCAMError(f"{name} has no dilation for output stride {stride}; try stride_mode='removal'") from error
    model: Any = loaded.model
    classifier = model.get_classifier()
    model.reset_classifier(0, "")
    size = (loaded.preprocessing.size or (256,))[0] if loaded.fixed_size else 256
    reader = _reader(name, model, size)
    own = output_stride(model, reader)
    reached = own or reader.stride
    if stride is not None and reached > stride:
        if own is None or dilated or not remove_strides(model, stride, reader):
            raise AdvCAMError(
                f"{name} has output stride {reached}, which cannot be lowered to {stride} by {backbone.stride_mode}; "
                f"give stride={reached}, or another backbone"
            )
        reached = stride
    mean, std = loaded.preprocessing.mean or (), loaded.preprocessing.std or ()
    return TimmTrunk(model, reader, reached, size, mean, std, classifier)


def load_backbone(backbone: Backbone) -> LoadedModel:
    return load_configured(
        backbone.name,
        model_args=backbone.model_args,
        checkpoint=backbone.checkpoint,
        random_weights=backbone.random_weights,
        mean=backbone.mean,
        std=backbone.std,
    )


def _load(backbone: Backbone, args: Mapping[str, Any]) -> LoadedModel:
    backbone = replace(backbone, model_args={**backbone.model_args, **args})
    any_size = "img_size" not in backbone.model_args and _is_published_for_one_size(backbone.name)
    for more in _ANY_SIZE if any_size else ():
        with contextlib.suppress(ModelArgsError):
            return load_backbone(replace(backbone, model_args={**backbone.model_args, **more}))
    return load_backbone(backbone)


def _is_published_for_one_size(name: str) -> bool:
    import timm

    architecture = name.partition("/")[2]
    if not timm.is_model(architecture):
        return False
    config = timm.get_pretrained_cfg(architecture)
    return bool(config and config.fixed_input_size)


def _reader(name: str, model: Any, size: int) -> FeatureReader:
    """The last maps of a model: the output of its forward, unless its features have a finer grid (VGG)."""
    twin = copy.deepcopy(model).to("meta").eval()
    image = torch.zeros(1, 3, size, size, device="meta")
    found = []
    for method in ("forward", "forward_features"):
        with torch.no_grad():
            out = getattr(twin, method)(image)
        if isinstance(out, Tensor) and out.ndim in (3, 4):
            found.append(_reader_of(method, out, model, size))
    if not found:
        raise AdvCAMError(f"{name} has no feature map; choose another backbone")
    return min(found, key=lambda reader: reader.stride)


def _reader_of(method: Any, out: Tensor, model: Any, size: int) -> FeatureReader:
    if out.ndim == 3:
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        return FeatureReader(method, "NLC", out.shape[2], prefix, round(size / math.isqrt(out.shape[1] - prefix)))
    widths = {model.num_features, getattr(model, "head_hidden_size", None)}
    if out.shape[3] in widths and out.shape[1] not in widths:
        return FeatureReader(method, "NHWC", out.shape[3], 0, round(size / out.shape[1]))
    return FeatureReader(method, "NCHW", out.shape[1], 0, round(size / out.shape[2]))

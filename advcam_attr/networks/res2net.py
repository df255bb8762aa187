"""The name of a Res2Net that timm has blocks of, but no name for, in; the net out."""

from __future__ import annotations

from typing import Any

from torch import nn

from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError

#: What tells these nets apart: ``d`` has a stem of three 3 × 3 convolutions and pools before its shortcuts (the
#: authors' v1b).
RES2NETS: dict[str, dict[str, Any]] = {
    "res2net152_26w_4s": {},
    "res2net152d": {"stem_type": "deep", "stem_width": 32, "avg_down": True},
}


def res2net(name: str, **options: Any) -> nn.Module:
    """A Res2Net-152 of timm's blocks (3, 8, 36 and 3 of them, width 26, scale 4), as the paper's Table IV names it.

    Names of weights are those of timm's Res2Net-101 and its ``d`` variant, with more blocks.

    Args:
        name: of `RES2NETS`.
        options: of timm's ResNet, e.g. ``output_stride``.

    Raises:
        AdvCAMError: an unknown name, or options that timm refuses.

    Example:
        >>> net = res2net("res2net152_26w_4s", output_stride=8, num_classes=10)
        >>> [len(layer) for layer in (net.layer1, net.layer2, net.layer3, net.layer4)]
        [3, 8, 36, 3]
    """
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models.res2net import Bottle2neck
    from timm.models.resnet import ResNet

    variant = lookup(name, {key: key for key in RES2NETS}, "Res2Net")
    given = {"base_width": 26, "block_args": {"scale": 4}, **RES2NETS[variant], **options}
    try:
        net = ResNet(Bottle2neck, (3, 8, 36, 3), **given)
    except (TypeError, ValueError, AssertionError) as error:
        raise AdvCAMError(f"{name} does not take the arguments {options}: {error}") from error
    net.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return net

"""ResNet-101 as in DeepLab-v2, and Res2Net-152: dilated trunks that timm does not define."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from torch import nn

from advcam_attr.networks.authors import caffe_weights, is_caffe
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint, seeded
from advcam_attr.networks.defaults import RESNET101, StrideIn
from advcam_attr.networks.load import first_published, load_model, normalization_of
from advcam_attr.networks.timm_trunk import FeatureReader, TimmTrunk
from advcam_attr.types import AdvCAMError

#: Stride and dilation of the four stages of a ResNet, by output stride. DeepLab-v2 has 8.
_STAGES = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}

#: Arguments of Res2Nets. ``d`` has a stem of three 3 × 3 convolutions and pools before its shortcuts (authors' v1b).
RES2NETS: dict[str, dict[str, Any]] = {
    "res2net152_26w_4s": {},
    "res2net152d": {"stem_type": "deep", "stem_width": 32, "avg_down": True},
}


def resnet_weights(backbone: Backbone) -> tuple[Checkpoint | None, StrideIn]:
    """Return the weights of a ResNet-101 by torchvision's names, and which convolution had the stride in training.

    Checkpoints have torchvision's names or deeplab-pytorch's; the default is ``IMAGENET1K_V1``.
    """
    if backbone.random_weights:
        return None, "3x3"
    found = first_published(RESNET101) if backbone.checkpoint is None else read_checkpoint(backbone.checkpoint)
    return (caffe_weights(found), "1x1") if is_caffe(found) else (found, "3x3")


def resnet_trunk(backbone: Backbone, weights: Checkpoint | None, stride_in: StrideIn) -> TimmTrunk:
    """Return a ResNet-101 with the strides (8, 16 or 32) and dilations of DeepLab-v2; keys are torchvision's.

    All blocks of a dilated stage have its dilation, the first one too, as in deeplab-pytorch. The max pool rounds up as
    in Caffe, giving a cell more than torchvision's if a side is even. Weights of a classifier or a pyramid are dropped.
    """
    stride = backbone.max_stride or 32
    if stride not in _STAGES or stride_in not in ("1x1", "3x3"):
        raise AdvCAMError(
            f"{RESNET101} has the output strides 8, 16 and 32, in its '1x1' or '3x3' convolutions; "
            f"got {stride} in {stride_in!r}"
        )
    loaded = load_model(RESNET101, model_args=backbone.model_args, random_weights=True)
    net: Any = loaded.model
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    trunk = nn.Sequential(OrderedDict((name, getattr(net, name)) for name in parts))
    net.maxpool.ceil_mode = True
    layers = (net.layer1, net.layer2, net.layer3, net.layer4)
    for layer, (step, dilation) in zip(layers, _STAGES[stride], strict=True):
        for number, block in enumerate(layer):
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
            block.conv1.stride = block.conv2.stride = (1, 1)
            if number == 0:
                (block.conv1 if stride_in == "1x1" else block.conv2).stride = (step, step)
                block.downsample[0].stride = (step, step)
    mean, std = loaded.preprocessing.mean or (), loaded.preprocessing.std or ()
    if weights is not None:
        features = {key: value for key, value in weights.weights.items() if not key.startswith(("fc.", "aspp."))}
        load_weights(trunk, replace(weights, weights=features), RESNET101)
        mean, std = normalization_of(weights, "mean") or mean, normalization_of(weights, "std") or std
    return TimmTrunk(trunk, FeatureReader("forward", "NCHW", 2048, 0, stride), stride, 256, mean, std)


def res2net_trunk(backbone: Backbone) -> TimmTrunk:
    """Return a Res2Net-152 (the paper's Table IV) with an output stride of 8, 16 or 32, dilated as timm does it.

    It has timm's blocks (3, 8, 36 and 3 of them, width 26, scale 4), and names of weights are those of timm's
    Res2Net-101 and its ``d`` variant. A checkpoint includes the classifier.
    """
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models.res2net import Bottle2neck
    from timm.models.resnet import ResNet

    name, stride = backbone.name, backbone.max_stride or 32
    if backbone.checkpoint is None and not backbone.random_weights:
        raise AdvCAMError(f"no weights of {name} are published with timm: give a checkpoint, or random weights")
    args = {"base_width": 26, "block_args": {"scale": 4}, **RES2NETS[name], **backbone.model_args}
    try:
        with seeded(0):
            net: Any = ResNet(Bottle2neck, (3, 8, 36, 3), output_stride=stride, **args)
    except (TypeError, ValueError, AssertionError) as error:
        raise AdvCAMError(f"{name} does not take the arguments {dict(backbone.model_args)}: {error}") from error
    if backbone.checkpoint is not None:
        load_weights(net, read_checkpoint(backbone.checkpoint), name)
    net.reset_classifier(0, "")
    reader = FeatureReader("forward", "NCHW", net.num_features, 0, stride)
    return TimmTrunk(net.eval(), reader, stride, 256, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

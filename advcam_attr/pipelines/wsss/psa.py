"""PSA (Ahn & Kwak, 2018): refinement of seeds by a random walk along learned pixel affinities.

In the output folder: ``scores/`` (which affinity labels are derived from), ``affinitynet/``, and ``masks/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from advcam_attr.data.images import normalised, open_image, read_rgb
from advcam_attr.data.masks import mask_path, write_png
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import RandomCropOrPad, to_input
from advcam_attr.networks.affinitynet import AFFINITY_NET, AffinityNet, affinity_net, trained_parts
from advcam_attr.pipelines.wsss.affinity import AffinityMethod
from advcam_attr.pipelines.wsss.mask_config import PSA_MOMENTUM, PSAConfig
from advcam_attr.refine.affinity_labels import psa_scores
from advcam_attr.refine.psa import (
    affinity_labels,
    affinity_walk,
    affinity_walk_labels,
    pair_losses,
    walk_maps,
    weighted_loss,
)
from advcam_attr.runs.stage import SeededImage
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import Group
from advcam_attr.training.losses.classification import Loss
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError

#: Published settings; SEAM's differ from PSA's in six values.
SETTINGS: dict[str, PSAConfig] = {
    "psa": PSAConfig(),
    "seam": PSAConfig(
        alphas=(4.0, 24.0),
        optimizer=Optimizer(0.01, weight_decay=5e-4, momentum=PSA_MOMENTUM),
        alpha=6.0,
        steps=64,
        small_grids="seam",
    ),
}


class PSA(AffinityMethod[AffinityNet]):
    """Refinement by PSA, for `advcam_attr.pipelines.wsss.affinity.refine_by_affinity`."""

    name = "psa"
    kind = AFFINITY_NET
    labels = "label scores"
    labels_folder = "scores"
    net_folder = "affinitynet"
    training_fields = ("alphas", "crf", "radius", "epochs", "batch", "crop", "optimizer", "jitter")
    config: PSAConfig

    def new_net(self) -> AffinityNet:
        return affinity_net(self.config.backbone, width=self.config.width, seed=self.runtime.seed)

    def check(self, net: AffinityNet) -> None:
        crop, radius, stride = self.config.crop, self.config.radius, net.stride
        if crop % stride or crop // stride < 2 * radius - 1:
            raise AdvCAMError(
                f"psa: a crop of {crop} pixels does not fit stride {stride} and radius {radius}; "
                f"give a multiple of {stride}, from {stride * (2 * radius - 1)} on"
            )

    def label_config(self) -> dict[str, Any]:
        return {"alphas": self.config.alphas, "crf": self.config.crf}

    def label(self, image: SeededImage, device: torch.device) -> Tensor:
        """Return the scores at the low power, then at the high one, ``(2 S, H, W)``."""
        low, high = psa_scores(image.maps, image.pixels.to(device), self.config.alphas, self.config.crf)
        return torch.cat([low, high])

    def write_label(self, path: Path, labels: Tensor, digest: str) -> None:
        write_scores(path, labels, digest)

    def items(self, net: AffinityNet, data: SegmentationData, folder: Path) -> AffinityItems:
        return AffinityItems(self.config, net, data, folder)

    def loss(self) -> Loss:
        def loss(features: Tensor, labels: Tensor) -> Tensor:
            sums, counts = pair_losses(features, labels, self.config.radius)
            return weighted_loss(sums, counts.new_tensor(gather(counts.tolist())).mean(0))

        return loss

    def groups(self, net: AffinityNet, optimizer: Optimizer) -> Sequence[Group]:
        parts, lr, decay = trained_parts(net), optimizer.lr, optimizer.weight_decay
        return (
            Group("weights", parts.weights, lr, decay),
            Group("biases", parts.biases, 2 * lr, 0.0),
            Group("new_weights", parts.new_weights, 10 * lr, decay),
            Group("new_biases", parts.new_biases, 20 * lr, 0.0),
        )

    def walk_config(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in ("alpha", "beta", "steps", "radius", "small_grids")}

    @torch.no_grad()
    def mask(self, net: AffinityNet, image: SeededImage, device: torch.device) -> Tensor:
        c, (height, width) = self.config, image.pixels.shape[1:]
        if not image.maps.classes:
            return torch.zeros(height, width, dtype=torch.uint8)
        maps = walk_maps(image.maps.high_res.to(device), c.alpha, net.stride)
        pixels = normalised(image.pixels[None].to(device), net.mean, net.std)
        features = net(F.pad(pixels, (0, -width % net.stride, 0, -height % net.stride)))[0]
        walked = affinity_walk(maps, features, c.radius, c.beta, c.steps, c.small_grids)
        return affinity_walk_labels(walked, image.maps.classes, (height, width), net.stride)


def write_scores(path: Path, scores: Tensor, digest: str = "") -> None:
    """Write scores in [0, 1], ``(S, H, W)``, as a grey PNG of ``S · H`` rows, rounded to 8 bits."""
    rows = (scores * 255).round().to("cpu", torch.uint8).flatten(0, 1)
    write_png(path, Image.fromarray(rows.numpy()), digest)


def read_scores(path: Path, size: tuple[int, int]) -> Tensor:
    """Read the scores of an image of this height and width, ``(S, H, W)`` float32."""
    with open_image(path, noun="label score image") as image:
        rows = np.array(image)
    if rows.ndim != 2 or rows.dtype != np.uint8 or rows.shape[1] != size[1] or rows.shape[0] % (2 * size[0]):
        raise AdvCAMError(f"the label scores {path} do not fit their image of {size[1]} x {size[0]}; remove the file")
    return torch.from_numpy(rows).float().div(255).reshape(-1, *size)


class AffinityItems:
    """Images and affinity labels by index, cropped and flipped together; images are jittered, not rescaled.

    Outside of an image the input is zero, the mean colour, and no label is confident.
    """

    def __init__(self, config: PSAConfig, net: AffinityNet, data: SegmentationData, folder: Path) -> None:
        self.samples, self.folder = data.samples, folder
        self.mean, self.std, self.stride = net.mean, net.std, net.stride
        self.jitter = v2.ColorJitter(*config.jitter)
        self.placed = v2.Compose([RandomCropOrPad(config.crop), v2.RandomHorizontalFlip(0.5)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image ``(3, S, S)`` and its labels ``(S / stride, S / stride)`` uint8, with S the crop."""
        sample = self.samples[index]
        picture = read_rgb(sample.image)
        scores = read_scores(mask_path(self.folder, sample.id), (picture.height, picture.width))
        image = to_input(self.jitter(picture), self.mean, self.std)
        placed = self.placed(torch.cat([image, scores]))
        low, high = placed[3:].chunk(2)
        return placed[:3], affinity_labels(low, high, self.stride)

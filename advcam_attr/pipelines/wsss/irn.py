"""IRN (Ahn et al., 2019): refinement of seeds by a random walk between learned class boundaries.

In the output folder: ``confident/`` (the labels that the net is trained on), ``irnet/``, and ``masks/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from advcam_attr.data.datasets import ClassificationDataset
from advcam_attr.data.images import normalised, read_rgb
from advcam_attr.data.masks import mask_path, read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import RandomCropOrPad, classifier_val, to_input
from advcam_attr.networks.irnet import IRNET, IRNet, irnet
from advcam_attr.pipelines.wsss.affinity import AffinityMethod
from advcam_attr.pipelines.wsss.mask_config import IRNConfig
from advcam_attr.refine.affinity_labels import ir_label
from advcam_attr.refine.irn import (
    edge_map,
    grid_labels,
    inference_size,
    irn_labels,
    irn_loss,
)
from advcam_attr.refine.pairs import pair_counts
from advcam_attr.refine.recipes import LABEL_THRESHOLDS, WalkRecipe
from advcam_attr.runs.sharding import shard_of_launch
from advcam_attr.runs.stage import SeededImage
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import Group
from advcam_attr.training.loading import load_batches
from advcam_attr.training.losses.classification import Loss
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.training.train import as_found
from advcam_attr.types import VOID


def _named(name: str, exponent: float, background: float) -> IRNConfig:
    foreground, low = LABEL_THRESHOLDS[name]
    return IRNConfig(foreground, low, walk=WalkRecipe(exponent=exponent, background=background))


#: Published settings. AdvCAM's thresholds for COCO were not released; RIB's are the nearest that are known.
SETTINGS: dict[str, IRNConfig] = {
    "advcam": _named("advcam", 1.5, 0.25),
    "irn": _named("irn", 1.0, 0.25),
    "rib": _named("rib", 1.3, 0.27),
    "rib_coco": _named("rib", 1.3, 0.22),
}


class IRN(AffinityMethod[IRNet]):
    """Refinement by IRN, for `advcam_attr.pipelines.wsss.affinity.refine_by_affinity`."""

    name = "irn"
    kind = IRNET
    labels = "confident labels"
    labels_folder = "confident"
    net_folder = "irnet"
    training_fields = ("radius", "epochs", "batch", "crop", "scales", "optimizer")
    config: IRNConfig

    def new_net(self) -> IRNet:
        return irnet(self.config.backbone, seed=self.runtime.seed)

    def label_config(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in ("foreground", "background", "crf")}

    def label(self, image: SeededImage, device: torch.device) -> Tensor:
        """Return 0, class + 1, or 255 for undecided, ``(H, W)`` uint8."""
        c = self.config
        return ir_label(image.maps, image.pixels.to(device), c.foreground, c.background, c.crf)

    def items(self, net: IRNet, data: SegmentationData, folder: Path) -> ConfidentItems:
        return ConfidentItems(self.config, net, data, folder)

    def loss(self) -> Loss:
        radius = self.config.radius

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            counts = None
            if shard_of_launch().world > 1:
                own = pair_counts(labels, radius)
                counts = own.new_tensor(gather(own.tolist())).mean(0)
            return irn_loss(logits, labels, radius, counts).total

        return loss

    def groups(self, net: IRNet, optimizer: Optimizer) -> Sequence[Group]:
        return (
            Group("edge", net.edge_parameters(), optimizer.lr, optimizer.weight_decay),
            Group("displacement", net.displacement_parameters(), optimizer.head_rate, optimizer.weight_decay),
        )

    @torch.no_grad()
    def finish(self, net: IRNet, data: SegmentationData) -> None:
        """Store the mean displacement over the images' top left squares in the net.

        It is the mean of the means of whole batches, as in IRN's code, or of an incomplete one if there is no other.
        """
        batch, device = self.config.batch, next(net.parameters()).device
        transform = classifier_val(self.config.crop, net.mean, net.std)
        items = ClassificationDataset(data.samples, len(data.classes), transform)
        count = len(items) // batch * batch or len(items)
        order = [[(0, i) for i in range(n, min(n + batch, count))] for n in range(0, count, batch)]
        with as_found(net):
            net.eval()
            net.mean_shift.running_mean.zero_()
            batches = load_batches(items, order, seed=self.runtime.seed, workers=self.runtime.workers)
            means = [net(images.to(device))[:, 1:].float().mean((0, 2, 3)) for images, _ in batches]
            net.mean_shift.running_mean.copy_(torch.stack(means).mean(0))

    def walk_config(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config.walk), "pad_to": self.config.pad_to}

    def mask(self, net: IRNet, image: SeededImage, device: torch.device) -> Tensor:
        return irn_labels(image.maps, edges(net, image.pixels.to(device), self.config.pad_to), self.config.walk)


class ConfidentItems:
    """Images and their confident labels by index, rescaled, flipped and cropped together.

    Images are resized by PIL's bicubic filter, labels by the nearest pixel. Outside of an image the input is zero, the
    mean colour, and labels are undecided.
    """

    def __init__(self, config: IRNConfig, net: IRNet, data: SegmentationData, folder: Path) -> None:
        self.samples, self.folder, self.scales = data.samples, folder, config.scales
        self.mean, self.std, self.classes = net.mean, net.std, len(data.classes)
        self.placed = v2.Compose([v2.RandomHorizontalFlip(0.5), RandomCropOrPad(config.crop)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image ``(3, S, S)`` float32 and its labels ``(S / 4, S / 4)`` uint8, with S the crop."""
        sample = self.samples[index]
        picture = read_rgb(sample.image)
        size = (picture.height, picture.width)
        labels = Image.fromarray(read_mask(mask_path(self.folder, sample.id), self.classes, size).numpy())
        least, greatest = self.scales
        scale = least + float(torch.rand(())) * (greatest - least)
        width, height = (max(1, int(side)) for side in np.round(np.array(picture.size) * scale))
        image = to_input(picture.resize((width, height), Image.Resampling.BICUBIC), self.mean, self.std)
        scaled = torch.from_numpy(np.array(labels.resize((width, height), Image.Resampling.NEAREST)))
        # shifted by VOID, so that the zeros of the padding become VOID
        placed = self.placed(torch.cat([image, scaled[None].float() - VOID]))
        return placed[:3], grid_labels((placed[3:] + VOID).to(torch.uint8))[0]


def edges(net: IRNet, pixels: Tensor, pad_to: int = 512) -> Tensor:
    """Return the first of `edges_and_displacement`."""
    return edges_and_displacement(net, pixels, pad_to)[0]


@torch.no_grad()
def edges_and_displacement(net: IRNet, pixels: Tensor, pad_to: int = 512) -> tuple[Tensor, Tensor]:
    """Return the class boundaries of an image, from itself and its mirror image, and its displacements, from itself.

    Args:
        net: in eval mode.
        pixels: ``(3, H, W)`` uint8, on the net's device.
        pad_to: see `advcam_attr.refine.irn.inference_size`.

    Returns:
        Probabilities ``(ceil(H / 4), ceil(W / 4))``, and displacements ``(2, ceil(H / 4), ceil(W / 4))``, y then x, in
        cells of 4 pixels.
    """
    height, width = pixels.shape[1:]
    large_height, large_width = inference_size((height, width), pad_to)
    image = normalised(torch.stack([pixels, pixels.flip(-1)]), net.mean, net.std)
    logits = net(F.pad(image, (0, large_width - width, 0, large_height - height)))
    logits = logits[..., : -(-height // 4), : -(-width // 4)]
    return edge_map(logits[:, 0]), logits[0, 1:]

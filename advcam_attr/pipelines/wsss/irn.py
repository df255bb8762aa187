"""Seeds and images in; masks refined by IRN's net and a random walk between its edges, one PNG an image, out.

In the output folder: ``confident/`` (the labels that the net learns from), ``irnet/`` (the training and its net),
``masks/`` (the result), and beside each folder of labels what they depend on. All stages go on where they stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from advcam_attr.files import to_json
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import IRN_BACKBONE
from advcam_attr.networks.irnet import IRNET, IRNet, irnet
from advcam_attr.networks.net_file import load_net, save_net
from advcam_attr.refine.affinity_labels import LABEL_THRESHOLDS, ir_label
from advcam_attr.refine.crf import CRF_RECIPES
from advcam_attr.refine.irn import (
    TRAINING_RADIUS,
    WalkRecipe,
    edge_map,
    grid_labels,
    inference_size,
    irn_labels,
    irn_loss,
)
from advcam_attr.refine.pairs import pair_counts
from advcam_attr.registry import lookup
from advcam_attr.runs.map_store import MapReader
from advcam_attr.runs.provenance import fingerprint, net_config
from advcam_attr.runs.runtime import Autocast, Runtime
from advcam_attr.runs.sharding import Shard, choose_device, shard_of, shard_of_launch
from advcam_attr.runs.stage import (
    SeededImage,
    check_made,
    check_method,
    check_seeds,
    ready_to_train,
    run_stage,
    seeded_stage,
)
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import RELEASED_MOMENTUM, Group, Optimizer
from advcam_attr.training.loading import load_batches
from advcam_attr.training.train import TrainingTask, as_found, train
from advcam_attr.types import VOID, AdvCAMError

logger = logging.getLogger(__name__)


#: The net's file in its folder.
WEIGHTS = "irnet.safetensors"

#: Settings that a training depends on.
_TRAINING = ("radius", "epochs", "batch", "crop", "scales", "edge_lr", "displacement_lr", "weight_decay", "momentum",
             "power", "autocast", "seed")  # fmt: skip


def refine_irn(
    settings: IRNSettings,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
) -> None:
    """Refine seeds by IRN: learn edges from what the seeds are sure of, and let the maps walk between them.

    Under ``torchrun`` or ``srun`` processes share each stage. In a SLURM array the confident labels and the masks are
    shared, but the training is one job's: run that once in between.

    Args:
        settings: how; with ``settings.trained``, nothing is trained.
        seeds: localization maps by image id: a `advcam_attr.runs.map_store.MapStore`, or anything that reads them.
        data: the images; their true masks are not read.
        out: the folder; the masks are ``out/masks/<id>.png``.

    Raises:
        AdvCAMError: seeds are missing, a folder was made with other settings (the difference is told), or some images
            could not be done; then all others are.

    Example:
        >>> refine_irn(IRNSettings(), seed_store(Path("run")), data, Path("run/irn"))  # doctest: +SKIP
    """
    check_seeds(seeds, data)
    check_method(out / "masks", "irn", overwrite=settings.overwrite)
    if settings.trained is not None:
        net = load_net(settings.trained, IRNET)[0]
        logger.info(f"IRN's net is {settings.trained}")
    else:
        net = settings.make_net()
        make_confident(settings, seeds, data, out)
        ready_to_train("confident labels", out / "confident", "IRN's net", out / "irnet" / WEIGHTS, data)
        net = train_irn(settings, net, data, out)
    write_masks(settings, net, seeds, data, out)


def make_confident(
    settings: IRNSettings,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
    shard: Shard | None = None,
) -> str:
    """Write the confident labels of all images to ``out/confident/<id>.png``: 0, class + 1, or 255 for undecided.

    Args:
        settings: the thresholds and the CRF are read.
        seeds: localization maps by image id.
        data: the images.
        out: the folder.
        shard: which share is done here; None asks the environment (``torchrun``, SLURM).

    Returns:
        The digest of what the labels depend on.

    Raises:
        AdvCAMError: as `refine_irn`.
    """
    shard = shard_of() if shard is None else shard
    device = choose_device(settings.device, shard.local)

    def make(read: SeededImage) -> Tensor:
        image = read.pixels.to(device)
        return ir_label(read.maps, image, settings.foreground, settings.background, settings.crf)

    config = {name: getattr(settings, name) for name in ("foreground", "background", "crf")}
    stage = seeded_stage("confident labels", out / "confident", config, seeds, data, make)
    return run_stage(stage, data, workers=settings.workers, overwrite=settings.overwrite, shard=shard)


def train_irn(
    settings: IRNSettings,
    net: IRNet,
    data: SegmentationData,
    out: Path,
) -> IRNet:
    """Train IRN's net on the labels in ``out/confident``, or go on with a training that was interrupted.

    After the last step, the mean displacement over the images' top left squares is stored in the net (the mean of the
    means of whole batches, as in IRN's code; of what there is where there is no whole batch).

    Args:
        settings: how.
        net: with new branches; trained in place.
        data: the images, all of which need confident labels.
        out: the folder; the net is ``out/irnet/irnet.safetensors``.

    Returns:
        The trained net, in eval mode, as it was saved.

    Raises:
        AdvCAMError: labels are missing or cannot be read, the folder holds another training, there are too few images,
            the loss is not finite, or a file cannot be written.
    """
    s, confident = settings, out / "confident"
    digest = check_made(confident, data, "confident labels")
    groups = (
        Group("edge", net.edge_parameters(), s.edge_lr, s.weight_decay),
        Group("displacement", net.displacement_parameters(), s.displacement_lr, s.weight_decay),
    )

    def save(path: Path) -> None:
        store_mean_displacement(net, data, s)
        save_net(path, net)

    task = TrainingTask(
        name="IRN net",
        net=net,
        items=ConfidentItems(s, net, data, confident),
        loss=_loss_of(s.radius),
        groups=groups,
        optimizer=Optimizer(s.edge_lr, s.displacement_lr, s.weight_decay, s.momentum, s.power),
        epochs=s.epochs,
        batch=s.batch,
        checkpoint_every=s.checkpoint_every,
        runtime=Runtime(s.device, s.workers, s.autocast, seed=s.seed, overwrite=s.overwrite),
        depends_on=to_json(
            {
                **{name: getattr(s, name) for name in _TRAINING},
                **net_config(net, net.spec),
                "data": f"{data.name} {data.split}",
                "images": fingerprint(data),
                "labels": digest,
            }
        ),
        save=save,
        file=WEIGHTS,
    )
    return load_net(train(task, out / "irnet"), IRNET)[0]


def _loss_of(radius: int) -> Callable[[Tensor, Tensor], Tensor]:
    """IRN's loss, its means over the pairs of the whole batch, of all ranks."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        counts = None
        if shard_of_launch().world > 1:
            own = pair_counts(labels, radius)
            counts = own.new_tensor(gather(own.tolist())).mean(0)
        return irn_loss(logits, labels, radius, counts).total

    return loss


class ConfidentItems:
    """Images and their confident labels by index: resized, normalised, mirrored and cut together.

    Both are scaled by one random factor, the image by PIL's bicubic filter, its labels by the nearest pixel. Outside of
    an image its input is zero, the mean colour, and its labels are undecided.

    Args:
        settings: the crop and the scales are read.
        net: which the images are for.
        data: the images; their true masks are not read.
        folder: of the labels.
    """

    def __init__(self, settings: IRNSettings, net: IRNet, data: SegmentationData, folder: Path) -> None:
        self.samples, self.folder, self.scales = data.samples, folder, settings.scales
        self.mean, self.std, self.classes = net.mean, net.std, len(data.classes)
        self.placed = v2.Compose([v2.RandomHorizontalFlip(0.5), RandomCropOrPad(settings.crop)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image ``(3, S, S)`` float32 and its labels ``(S / 4, S / 4)`` uint8, with S the crop.

        Raises:
            AdvCAMError: one of them is missing or damaged, or they differ in size.
        """
        sample = self.samples[index]
        picture = read_rgb(sample.image)
        size = (picture.height, picture.width)
        labels = Image.fromarray(read_mask(mask_path(self.folder, sample.id), self.classes, size).numpy())
        least, greatest = self.scales
        scale = least + float(torch.rand(())) * (greatest - least)
        width, height = (max(1, int(side)) for side in np.round(np.array(picture.size) * scale))
        image = to_input(picture.resize((width, height), Image.Resampling.BICUBIC), self.mean, self.std)
        scaled = torch.from_numpy(np.array(labels.resize((width, height), Image.Resampling.NEAREST)))
        # below 0 by what is undecided, so that the zeros around the image come to be undecided
        placed = self.placed(torch.cat([image, scaled[None].float() - VOID]))
        return placed[:3], grid_labels((placed[3:] + VOID).to(torch.uint8))[0]


@torch.no_grad()
def store_mean_displacement(net: IRNet, data: SegmentationData, settings: IRNSettings) -> None:
    """Measure the mean displacement over the images' top left squares, and store it in the net."""
    device = next(net.parameters()).device
    items = ClassificationDataset(data.samples, len(data.classes), classifier_val(settings.crop, net.mean, net.std))
    count = len(items) // settings.batch * settings.batch or len(items)
    order = [[(0, i) for i in range(n, min(n + settings.batch, count))] for n in range(0, count, settings.batch)]
    with as_found(net):
        net.eval()
        net.mean_shift.running_mean.zero_()
        batches = load_batches(items, order, seed=settings.seed, workers=settings.workers)
        means = [net(images.to(device))[:, 1:].float().mean((0, 2, 3)) for images, _ in batches]
        net.mean_shift.running_mean.copy_(torch.stack(means).mean(0))


def write_masks(
    settings: IRNSettings,
    net: IRNet,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
    shard: Shard | None = None,
) -> None:
    """Let the maps of all images walk between the net's edges, and write the labels to ``out/masks/<id>.png``.

    Masks that are there are kept. An image that cannot be done does not stop the others.

    Args:
        settings: of the walk.
        net: trained; its mode and device are as before afterwards.
        seeds: localization maps by image id.
        data: the images.
        out: the folder.
        shard: which share is done here; None asks the environment (``torchrun``, SLURM).

    Raises:
        AdvCAMError: the masks there were made with other settings, a file cannot be written, or, after all others were
            done, some images could not be.
    """
    shard = shard_of() if shard is None else shard
    device = choose_device(settings.device, shard.local)

    def make(read: SeededImage) -> Tensor:
        return irn_labels(read.maps, edges(net, read.pixels.to(device), settings.pad_to), settings.walk)

    config = {"method": "irn", **dataclasses.asdict(settings.walk), "pad_to": settings.pad_to}
    stage = seeded_stage("masks", out / "masks", config | net_config(net, net.spec), seeds, data, make)
    with as_found(net):
        net.to(device).eval()
        run_stage(stage, data, workers=settings.workers, overwrite=settings.overwrite, shard=shard)


@torch.no_grad()
def edges(net: IRNet, pixels: Tensor, pad_to: int = 512) -> Tensor:
    """The class boundaries of an image, from itself and its mirror image.

    Args:
        net: in eval mode.
        pixels: ``(3, H, W)`` uint8, on the net's device.
        pad_to: sides below it are padded to it; see `advcam_attr.refine.irn.inference_size`.

    Returns:
        Probabilities ``(ceil(H / 4), ceil(W / 4))``.
    """
    height, width = pixels.shape[1:]
    large_height, large_width = inference_size((height, width), pad_to)
    image = normalised(torch.stack([pixels, pixels.flip(-1)]), net.mean, net.std)
    logits = net(F.pad(image, (0, large_width - width, 0, large_height - height)))[:, 0]
    return edge_map(logits[:, : -(-height // 4), : -(-width // 4)])


@dataclass(frozen=True)
class IRNSettings:
    """How seeds are refined by IRN. The defaults are AdvCAM's released code's, whose training is IRN's.

    Attributes:
        foreground: 0.35 (IRN: 0.30); what a map must exceed to be surely of its class.
        background: 0.15 (IRN: 0.05); where no map exceeds it, all is surely background.
        crf: the recipe of the CRF that confident labels go through.
        walk: how the maps walk; their exponent is 1.5 (IRN: 1).
        backbone: ``torchvision/resnet50``, or ``timm/NAME``.
        model_args, checkpoint, random_weights, mean, std: of the backbone; see `advcam_attr.networks.irnet.irnet`.
        trained: a file of IRN's net that is trained already, ours or its authors'; then none is trained.
        radius: 10 cells, of pairs in training.
        epochs: 3; the rest of an epoch that fills no batch is dropped.
        batch: 32 images an update, whatever the number of ranks.
        crop: 512 pixels, the side of the square that is cut or padded.
        scales: 0.5 to 1.5, the range of the random factor by which images are resized before that.
        edge_lr: 0.1, of the edge branch.
        displacement_lr: 1.0, of the displacement branch, which masks do not depend on.
        weight_decay: 1e-4.
        momentum: 1e-4. The released optimiser passes the weight decay in the place of the momentum, and the learning
            rates fit that; with 0.9 they would be about ten times too high.
        power: 0.9, of the poly schedule.
        autocast: precision of the forward pass; None for float32 as in IRN.
        seed: of the branches' weights, of order and augmentation.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        pad_to: 512 pixels, to which smaller images are padded, right and below, before the net sees them.
        workers: processes that read images in training, threads elsewhere; 0 reads them in between.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: make labels and masks anew, whatever is there; a training with other settings makes way.
    """

    foreground: float = LABEL_THRESHOLDS["advcam"][0]
    background: float = LABEL_THRESHOLDS["advcam"][1]
    crf: str = "irn"
    walk: WalkRecipe = WalkRecipe()
    backbone: str = IRN_BACKBONE
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | Path | None = None
    random_weights: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    trained: str | Path | None = None
    radius: int = TRAINING_RADIUS
    epochs: int = 3
    batch: int = 32
    crop: int = 512
    scales: tuple[float, float] = (0.5, 1.5)
    edge_lr: float = 0.1
    displacement_lr: float = 1.0
    weight_decay: float = 1e-4
    momentum: float = RELEASED_MOMENTUM
    power: float = 0.9
    autocast: Autocast | None = None
    seed: int = 0
    checkpoint_every: int = 200
    pad_to: int = 512
    workers: int = 4
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        lookup(self.crf, CRF_RECIPES, "CRF recipe")
        for name in ("epochs", "batch", "checkpoint_every", "pad_to"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"irn: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("edge_lr", "displacement_lr", "weight_decay", "momentum", "power", "workers"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"irn: {name} must be a number that is not negative, got {getattr(self, name)}")
        if not 0 <= self.background <= self.foreground <= 1:
            raise AdvCAMError(
                f"irn: the background threshold {self.background} must lie between 0 and the foreground's, which is "
                f"{self.foreground} and at most 1"
            )
        least = 4 * (2 * self.radius - 1)
        if self.radius < 2 or self.crop % 16 or self.crop < least:
            raise AdvCAMError(
                f"irn: a crop of {self.crop} pixels does not fit radius {self.radius}; give a radius of at least 2 and "
                f"a crop that is a multiple of 16, from {-(-least // 16) * 16} on"
            )
        if self.pad_to % 16:
            raise AdvCAMError(f"irn: pad_to must be a multiple of 16, got {self.pad_to}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise AdvCAMError(f"irn: scales must be positive, the smaller first, got {self.scales}")

    def make_net(self) -> IRNet:
        """IRN's net: the trained one, or one to be trained.

        Raises:
            AdvCAMError: it cannot be made; see `irnet` and `load_net`.
        """
        if self.trained is not None:
            return load_net(self.trained, IRNET)[0]
        backbone = Backbone(
            self.backbone, self.model_args, self.checkpoint, self.random_weights, mean=self.mean, std=self.std
        )
        return irnet(backbone, seed=self.seed)


def _named(name: str, exponent: float, background: float) -> IRNSettings:
    foreground, low = LABEL_THRESHOLDS[name]
    return IRNSettings(foreground, low, walk=WalkRecipe(exponent=exponent, background=background))


#: By whose code they are. AdvCAM's thresholds for COCO were not released; RIB's are the nearest that are known.
SETTINGS: dict[str, IRNSettings] = {
    "advcam": _named("advcam", 1.5, 0.25),
    "irn": _named("irn", 1.0, 0.25),
    "rib": _named("rib", 1.3, 0.27),
    "rib_coco": _named("rib", 1.3, 0.22),
}

"""Seeds and images in; masks refined by an affinity net and its random walk (PSA), one palette PNG an image, out.

In the output folder: ``scores/`` (what affinity labels are cut from), ``affinitynet/`` (the training and its net),
``masks/`` (the result), and beside each folder's results what they depend on. All stages go on where they stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from advcam_attr.files import to_json
from advcam_attr.networks.affinitynet import (
    AFFINITY_NET,
    RESNET38,
    AffinityNet,
    affinity_net,
    trained_parts,
)
from advcam_attr.networks.backbone import Backbone, StrideMode
from advcam_attr.networks.net_file import load_net, save_net
from advcam_attr.refine.affinity_labels import ALPHAS, psa_scores
from advcam_attr.refine.crf import CRF_RECIPES
from advcam_attr.refine.psa import (
    affinity_labels,
    affinity_walk,
    affinity_walk_labels,
    pair_losses,
    walk_maps,
    weighted_loss,
)
from advcam_attr.refine.random_walk import LARGEST_RADIUS
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
from advcam_attr.training.fit import Group, Optimizer
from advcam_attr.training.train import TrainingTask, as_found, train
from advcam_attr.types import AdvCAMError

#: The net's file in its folder.
WEIGHTS = "affinitynet.safetensors"

_TRAINING = ("alphas", "crf", "radius", "epochs", "batch", "crop", "lr", "weight_decay", "momentum", "power", "jitter",
             "autocast", "seed")  # fmt: skip


def refine_psa(
    settings: PSASettings,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
) -> None:
    """Refine seeds by PSA: learn affinities from what the seeds are sure of, and let them walk along these.

    Under ``torchrun`` or ``srun`` processes share each stage. In a SLURM array the scores and the masks are shared, but
    the training is one job's: run that once in between.

    Args:
        settings: how; with ``settings.trained``, nothing is trained.
        seeds: localization maps by image id: a `advcam_attr.runs.map_store.MapStore`, or anything that reads them.
        data: the images; their true masks are not read.
        out: the folder; the masks are ``out/masks/<id>.png``.

    Raises:
        AdvCAMError: seeds are missing, a folder was made with other settings (the difference is told), or some images
            could not be done; then all others are.

    Example:
        >>> settings = PSASettings(checkpoint="resnet38_imagenet.pth")  # doctest: +SKIP
        >>> refine_psa(settings, seed_store(Path("run")), data, Path("run/psa"))  # doctest: +SKIP
    """
    check_seeds(seeds, data)
    check_method(out / "masks", "psa", overwrite=settings.overwrite)
    net = settings.make_net()
    if settings.trained is None:
        settings.check_crop(net.stride)
        _scores(settings, seeds, data, out / "scores")
        ready_to_train("label scores", out / "scores", "the affinity net", out / "affinitynet" / WEIGHTS, data)
        net = train_affinitynet(settings, net, data, out)
    write_masks(settings, net, seeds, data, out)


def train_affinitynet(
    settings: PSASettings,
    net: AffinityNet,
    data: SegmentationData,
    out: Path,
) -> AffinityNet:
    """Train an affinity net on the label scores in ``out/scores``, or go on with a training that was interrupted.

    Args:
        settings: how.
        net: with a new head; trained in place.
        data: the images, all of which need scores.
        out: the folder; the net is ``out/affinitynet/affinitynet.safetensors``.

    Returns:
        The trained net, in eval mode, as it was saved.

    Raises:
        AdvCAMError: scores are missing or cannot be read, the folder holds another training, there are too few images,
            the loss is not finite, or a file cannot be written.
    """
    scores = out / "scores"
    digest = check_made(scores, data, "label scores")
    settings.check_crop(net.stride)
    parts, s = trained_parts(net), settings
    groups = (
        Group("weights", parts.weights, s.lr, s.weight_decay),
        Group("biases", parts.biases, 2 * s.lr, 0.0),
        Group("new_weights", parts.new_weights, 10 * s.lr, s.weight_decay),
        Group("new_biases", parts.new_biases, 20 * s.lr, 0.0),
    )
    task = TrainingTask(
        name="affinity net",
        net=net,
        items=AffinityItems(s, net, data, scores),
        loss=_loss_of(s.radius),
        groups=groups,
        optimizer=Optimizer(s.lr, None, s.weight_decay, s.momentum, s.power),
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
                "scores": digest,
            }
        ),
        save=lambda path: save_net(path, net),
        file=WEIGHTS,
    )
    return load_net(train(task, out / "affinitynet"), AFFINITY_NET)[0]


def write_masks(
    settings: PSASettings,
    net: AffinityNet,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
    shard: Shard | None = None,
) -> None:
    """Let the seeds of all images walk along the net's affinities, and write the labels to ``out/masks/<id>.png``.

    Masks that are there are kept. An image that cannot be done does not stop the others.

    Args:
        settings: of the walk.
        net: trained; its mode and device are as before afterwards.
        seeds: localization maps by image id.
        data: the images.
        out: the folder.
        shard: which share is done here; None asks the environment (``torchrun``, SLURM).

    Raises:
        AdvCAMError: seeds are missing, the masks there were made with other settings, a file cannot be written, or,
            after all others were done, some images could not be.
    """
    check_seeds(seeds, data)
    shard = shard_of() if shard is None else shard
    device = choose_device(settings.device, shard.local)

    def make(read: SeededImage) -> Tensor:
        return _walked(settings, net, read, device)

    config = {"method": "psa", **{name: getattr(settings, name) for name in ("alpha", "beta", "steps", "radius")}}
    stage = seeded_stage("masks", out / "masks", config | net_config(net, net.spec), seeds, data, make)
    with as_found(net):
        net.to(device).eval()
        run_stage(stage, data, workers=settings.workers, overwrite=settings.overwrite, shard=shard)


@torch.no_grad()
def _walked(settings: PSASettings, net: AffinityNet, read: SeededImage, device: torch.device) -> Tensor:
    """The labels of one image, ``(H, W)`` uint8."""
    height, width = read.pixels.shape[1:]
    if not read.maps.classes:
        return torch.zeros(height, width, dtype=torch.uint8)
    maps = walk_maps(read.maps.high_res.to(device), settings.alpha, net.stride)
    image = normalised(read.pixels[None].to(device), net.mean, net.std)
    features = net(F.pad(image, (0, -width % net.stride, 0, -height % net.stride)))[0]
    walked = affinity_walk(maps, features, settings.radius, settings.beta, settings.steps)
    return affinity_walk_labels(walked, read.maps.classes, (height, width), net.stride)


def _scores(
    settings: PSASettings,
    seeds: MapReader,
    data: SegmentationData,
    folder: Path,
) -> None:
    """Make the scores of this process's share."""
    device = choose_device(settings.device, shard_of_launch().local)

    def make(read: SeededImage) -> Tensor:
        low, high = psa_scores(read.maps, read.pixels.to(device), settings.alphas, settings.crf)
        return torch.cat([low, high])

    config = {"alphas": settings.alphas, "crf": settings.crf}
    stage = seeded_stage("label scores", folder, config, seeds, data, make, write_scores)
    run_stage(stage, data, workers=settings.workers, overwrite=settings.overwrite)


def _loss_of(radius: int) -> Callable[[Tensor, Tensor], Tensor]:
    """PSA's loss, its means over the pairs of the whole batch, of all ranks."""

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        sums, counts = pair_losses(features, labels, radius)
        return weighted_loss(sums, counts.new_tensor(gather(counts.tolist())).mean(0))

    return loss


#: PSA's optimiser passes the weight decay in the place of the momentum, as IRN's does; its learning rate fits that.
RELEASED_MOMENTUM = 5e-4


@dataclass(frozen=True)
class PSASettings:
    """How seeds are refined by PSA. The defaults are those of PSA's released code.

    Attributes:
        backbone: ``resnet38``, or ``timm/NAME``.
        model_args: keyword arguments of a timm model.
        checkpoint: the trunk's weights before training; see `advcam_attr.networks.affinitynet.affinity_net`.
        random_weights: train from a trunk as it is initialised.
        trained: a file of an affinity net that is trained already; then none is trained.
        stride: pixels of a cell's side; 8.
        stride_mode: how a timm model's stride is lowered.
        width: of the head, and of ResNet-38; 64.
        alphas: 4 and 32, the powers of the background's score for what is surely foreground and surely background.
        crf: the recipe of the CRF that these scores go through.
        radius: 5 cells, of pairs, in training and in the walk; at most 32.
        epochs: 8; the rest of an epoch that fills no batch is dropped.
        batch: 8 images an update, whatever the number of ranks.
        crop: 448 pixels, the side of the square that is cut or padded; images are not rescaled.
        lr: 0.1, of the trunk; its biases have twice as much and the new layers ten times.
        weight_decay: 5e-4, but none of biases.
        momentum: 5e-4. The released optimiser passes the weight decay in the place of the momentum, and the learning
            rates fit that; with 0.9 they would be about ten times too high.
        power: 0.9, of the poly schedule.
        jitter: 0.3, 0.3, 0.3 and 0.1, of brightness, contrast, saturation and hue.
        autocast: precision of the forward pass; None for float32 as in PSA.
        seed: of the new weights, of order, augmentation and dropout.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        alpha: 16, the power of the background's score that walks.
        beta: 8, the power of affinities.
        steps: 256, of the walk.
        workers: processes that read images in training, threads in the walk; 0 reads them in between.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: make masks and label scores anew, whatever is there; a training with other settings makes way.
    """

    backbone: str = RESNET38
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | Path | None = None
    random_weights: bool = False
    trained: str | Path | None = None
    stride: int = 8
    stride_mode: StrideMode = "removal"
    width: int = 64
    alphas: tuple[float, float] = (ALPHAS[0], ALPHAS[1])
    crf: str = "psa"
    radius: int = 5
    epochs: int = 8
    batch: int = 8
    crop: int = 448
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = RELEASED_MOMENTUM
    power: float = 0.9
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    autocast: Autocast | None = None
    seed: int = 0
    checkpoint_every: int = 200
    alpha: float = 16.0
    beta: float = 8.0
    steps: int = 256
    workers: int = 4
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        lookup(self.crf, CRF_RECIPES, "CRF recipe")
        for name in ("epochs", "batch", "crop", "checkpoint_every", "stride", "width"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"psa: {name} must be at least 1, got {getattr(self, name)}")
        numbers = ("lr", "weight_decay", "momentum", "power", "alpha", "beta", "steps", "workers")
        for name in numbers:
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"psa: {name} must be a number that is not negative, got {getattr(self, name)}")
        low, high = self.alphas
        if not 0 < low <= high:
            raise AdvCAMError(f"psa: of the powers alphas, the low one comes first, both above 0; got {self.alphas}")
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise AdvCAMError(f"psa: jitter must be four numbers from 0, the hue's at most 0.5, got {self.jitter}")
        if not 2 <= self.radius <= LARGEST_RADIUS:
            raise AdvCAMError(
                f"psa: the radius must be at least 2 and at most {LARGEST_RADIUS} cells, got {self.radius}"
            )

    def check_crop(self, stride: int) -> None:
        """Refuse crops in which a net of some stride finds no pairs of cells.

        Raises:
            AdvCAMError: with what would do.
        """
        if self.crop % stride or self.crop // stride < 2 * self.radius - 1:
            raise AdvCAMError(
                f"psa: a crop of {self.crop} pixels does not fit stride {stride} and radius {self.radius}; "
                f"give a multiple of {stride}, from {stride * (2 * self.radius - 1)} on"
            )

    def make_net(self) -> AffinityNet:
        """The affinity net: the trained one, or one to be trained.

        Raises:
            AdvCAMError: it cannot be made; see `affinity_net` and `load_net`.
        """
        if self.trained is not None:
            return load_net(self.trained, AFFINITY_NET)[0]
        backbone = Backbone(
            self.backbone, self.model_args, self.checkpoint, self.random_weights, self.stride, self.stride_mode
        )
        return affinity_net(backbone, width=self.width, seed=self.seed)


#: By whose code they are; SEAM's differ from PSA's in five numbers.
SETTINGS: dict[str, PSASettings] = {
    "psa": PSASettings(),
    "seam": PSASettings(alphas=(4.0, 24.0), lr=0.01, alpha=6.0, steps=64),
}


def write_scores(path: Path, scores: Tensor, digest: str = "") -> None:
    """Write scores in [0, 1], ``(S, H, W)``, as a grey PNG of ``S · H`` rows, rounded to 8 bits."""
    rows = (scores * 255).round().to("cpu", torch.uint8).flatten(0, 1)
    write_png(path, Image.fromarray(rows.numpy()), digest)


def read_scores(path: Path, size: tuple[int, int]) -> Tensor:
    """Read what `write_scores` wrote.

    Args:
        path: the file.
        size: the image's height and width.

    Returns:
        ``(S, H, W)`` float32.

    Raises:
        AdvCAMError: the file is missing, damaged, or of an image of another size.
    """
    with open_image(path, noun="label score image") as image:
        rows = np.array(image)
    if rows.ndim != 2 or rows.dtype != np.uint8 or rows.shape[1] != size[1] or rows.shape[0] % (2 * size[0]):
        raise AdvCAMError(f"the label scores {path} do not fit their image of {size[1]} x {size[0]}; remove the file")
    return torch.from_numpy(rows).float().div(255).reshape(-1, *size)


class AffinityItems:
    """Images and affinity labels by index: jittered, normalised, cut and mirrored together with their scores.

    Images are not rescaled. Outside of an image its input is zero, the mean colour, and no label is sure.

    Args:
        settings: the crop and the jitter are read.
        net: which the images are for.
        data: the images; their masks are not read.
        folder: of the scores.
    """

    def __init__(self, settings: PSASettings, net: AffinityNet, data: SegmentationData, folder: Path) -> None:
        self.samples, self.folder = data.samples, folder
        self.mean, self.std, self.stride = net.mean, net.std, net.stride
        brightness, contrast, saturation, hue = settings.jitter
        self.jitter = v2.ColorJitter(brightness, contrast, saturation, hue)
        self.placed = v2.Compose([RandomCropOrPad(settings.crop), v2.RandomHorizontalFlip(0.5)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image ``(3, S, S)`` and its labels ``(S / stride, S / stride)`` uint8, with S the crop."""
        sample = self.samples[index]
        picture = read_rgb(sample.image)
        scores = read_scores(mask_path(self.folder, sample.id), (picture.height, picture.width))
        image = to_input(self.jitter(picture), self.mean, self.std)
        placed = self.placed(torch.cat([image, scores]))
        low, high = placed[3:].chunk(2)
        return placed[:3], affinity_labels(low, high, self.stride)

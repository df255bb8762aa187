"""Seeds and images in; masks refined by an affinity net and its random walk (PSA), one palette PNG an image, out.

In the output folder: ``scores/`` (what affinity labels are cut from), ``affinitynet/`` (the training and its net),
``masks/`` (the result), and beside each folder's results what they depend on. All stages go on where they stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.pictures import normalised
from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.engine.devices import choose_device
from advcam_attr.engine.distributed import gather
from advcam_attr.engine.optimiser import Group
from advcam_attr.engine.sharding import Shard, shard_of, shard_of_launch
from advcam_attr.networks.affinitynet import AffinityNet, load_affinity_net, save_affinity_net, trained_parts
from advcam_attr.pipelines.evaluation import MapReader
from advcam_attr.pipelines.label_stage import (
    Tell,
    check_made,
    check_method,
    check_seeds,
    listed,
    plain,
    ready_to_train,
    run_stage,
    silent,
)
from advcam_attr.pipelines.psa_labels import AffinityItems, write_scores
from advcam_attr.pipelines.psa_settings import PSASettings
from advcam_attr.pipelines.run_folder import net_config
from advcam_attr.pipelines.seeded_images import SeededImage, seeded_stage
from advcam_attr.pipelines.training import TrainingTask, as_found, train
from advcam_attr.refine.confident import psa_scores
from advcam_attr.refine.psa import affinity_walk, pair_losses, walk_labels, walk_maps, weighed

__all__ = ["PSASettings", "refine_psa", "train_affinitynet", "write_masks"]

#: The net's file in its folder.
WEIGHTS = "affinitynet.safetensors"

_TRAINING = ("alphas", "crf", "radius", "epochs", "batch", "crop", "lr", "weight_decay", "momentum", "power", "jitter",
             "precision", "seed")  # fmt: skip


def refine_psa(settings: PSASettings, seeds: MapReader, data: SegmentationData, out: Path, tell: Tell = silent) -> None:
    """Refine seeds by PSA: learn affinities from what the seeds are sure of, and let them walk along these.

    Under ``torchrun`` or ``srun`` processes share each stage. In a SLURM array the scores and the masks are shared, but
    the training is one job's: run that once in between.

    Args:
        settings: how; with ``settings.trained``, nothing is trained.
        seeds: localization maps by image id: a `advcam_attr.engine.store.MapStore`, or anything that reads them.
        data: the images; their true masks are not read.
        out: the folder; the masks are ``out/masks/<id>.png``.
        tell: is told what is going on, line by line.

    Raises:
        AdvCAMError: seeds are missing, a folder was made with other settings (the difference is told), or some images
            could not be done; then all others are.

    Example:
        >>> settings = PSASettings(checkpoint="resnet38_imagenet.pth")  # doctest: +SKIP
        >>> refine_psa(settings, seed_store(Path("run")), data, Path("run/psa"), print)  # doctest: +SKIP
    """
    check_seeds(seeds, data)
    check_method(out / "masks", "psa", overwrite=settings.overwrite)
    net = settings.make_net()
    if settings.trained is None:
        settings.check_crop(net.stride)
        _scores(settings, seeds, data, out / "scores", tell)
        ready_to_train("label scores", out / "scores", "the affinity net", out / "affinitynet" / WEIGHTS, data)
        net = train_affinitynet(settings, net, data, out, tell)
    write_masks(settings, net, seeds, data, out, tell)


def train_affinitynet(
    settings: PSASettings, net: AffinityNet, data: SegmentationData, out: Path, tell: Tell = silent
) -> AffinityNet:
    """Train an affinity net on the label scores in ``out/scores``, or go on with a training that was interrupted.

    Args:
        settings: how.
        net: with a new head; trained in place.
        data: the images, all of which need scores.
        out: the folder; the net is ``out/affinitynet/affinitynet.safetensors``.
        tell: is told what is going on, on the first rank.

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
        name="affinity net", net=net, items=AffinityItems(s, net, data, scores), loss=_loss_of(s.radius), groups=groups,
        momentum=s.momentum, epochs=s.epochs, batch=s.batch, power=s.power, precision=s.precision, seed=s.seed,
        workers=s.workers, checkpoint_every=s.checkpoint_every, device=s.device,
        depends_on=plain({
            **{name: getattr(s, name) for name in _TRAINING}, **net_config(net, net.spec),
            "data": f"{data.name} {data.split}", "images": listed(data), "scores": digest,
        }),
        save=lambda path: save_affinity_net(net, path), file=WEIGHTS, overwrite=s.overwrite,
    )  # fmt: skip
    return load_affinity_net(train(task, out / "affinitynet", tell))


def write_masks(
    settings: PSASettings,
    net: AffinityNet,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
    tell: Tell = silent,
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
        tell: is told what is going on.
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
        run_stage(stage, data, workers=settings.workers, overwrite=settings.overwrite, shard=shard, tell=tell)


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
    return walk_labels(walked, read.maps.classes, (height, width), net.stride)


def _scores(settings: PSASettings, seeds: MapReader, data: SegmentationData, folder: Path, tell: Tell) -> None:
    """Make the scores of this process's share."""
    device = choose_device(settings.device, shard_of_launch().local)

    def make(read: SeededImage) -> Tensor:
        low, high = psa_scores(read.maps, read.pixels.to(device), settings.alphas, settings.crf)
        return torch.cat([low, high])

    config = {"alphas": settings.alphas, "crf": settings.crf}
    stage = seeded_stage("label scores", folder, config, seeds, data, make, write_scores)
    run_stage(stage, data, workers=settings.workers, overwrite=settings.overwrite, tell=tell)


def _loss_of(radius: int) -> Callable[[Tensor, Tensor], Tensor]:
    """PSA's loss, its means over the pairs of the whole batch, of all ranks."""

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        sums, counts = pair_losses(features, labels, radius)
        return weighed(sums, counts.new_tensor(gather(counts.tolist())).mean(0))

    return loss

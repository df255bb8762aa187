"""Seeds and images in; masks refined by an affinity net and its random walk (PSA), one palette PNG an image, out.

In the output folder: ``scores/`` (what affinity labels are cut from), ``affinitynet/`` (the training and its net),
``masks/`` (the result), and beside each folder's results what they depend on. All stages go on where they stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.engine.distributed import gather, training_rank
from advcam_attr.engine.optimiser import Group
from advcam_attr.engine.sharding import Shard, shard_of
from advcam_attr.networks.affinitynet import AffinityNet, load_affinity_net, save_affinity_net, trained_parts
from advcam_attr.pipelines.evaluation import MapReader
from advcam_attr.pipelines.masks import mask_path, png_settings, write_mask
from advcam_attr.pipelines.pictures import normalized_pictures
from advcam_attr.pipelines.psa_labels import AffinityItems, SeededImage, make_scores, read_all
from advcam_attr.pipelines.psa_settings import PSASettings
from advcam_attr.pipelines.run_folder import read_record, same_settings, weights_digest
from advcam_attr.pipelines.training import TrainingTask, as_found, remove_leftovers, train
from advcam_attr.refine.psa import affinity_walk, pair_losses, walk_labels, walk_maps, weighed
from advcam_attr.types import AdvCAMError, Sample

__all__ = ["PSASettings", "refine_psa", "train_affinitynet", "write_masks"]

Tell = Callable[[str], None]

#: The net's file in its folder.
WEIGHTS = "affinitynet.safetensors"

#: For so long, in seconds, nothing new may come from the other ranks before they count as stopped.
PATIENCE = 1800.0

#: Temporary files older than this, in seconds, were left by killed processes: a write takes milliseconds.
_DEAD = 3600.0

_TRAINING = ("alphas", "crf", "radius", "epochs", "batch", "crop", "lr", "weight_decay", "momentum", "power", "jitter",
             "precision", "seed")  # fmt: skip


def _silent(line: str) -> None:
    pass


def refine_psa(
    settings: PSASettings, seeds: MapReader, data: SegmentationData, out: Path, tell: Tell = _silent
) -> None:
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
    _check(seeds, data)
    net = settings.make_net()
    if settings.trained is None:
        settings.check_crop(net.stride)
        _scores(settings, seeds, data, out / "scores", tell)
        if shard_of().world > training_rank().world and not (out / "affinitynet" / WEIGHTS).is_file():
            raise AdvCAMError(
                f"the label scores of this share are in {out / 'scores'}; now train the affinity net in one job, the "
                "same command outside of the array, and then start the array again for the masks"
            )
        net = train_affinitynet(settings, net, data, out, tell)
    write_masks(settings, net, seeds, data, out, tell)


def train_affinitynet(
    settings: PSASettings, net: AffinityNet, data: SegmentationData, out: Path, tell: Tell = _silent
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
    digest = (read_record(_record(scores)) or {"digest": None})["digest"]
    missing = [s for s in data.samples if digest is None or png_settings(mask_path(scores, s.id)) != digest]
    if missing:
        raise AdvCAMError(
            f"label scores of {len(missing)} of {len(data.samples)} images are missing in {scores}, e.g. of "
            f"{missing[0].id}; make them first"
        )
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
        depends_on=_plain({
            **{name: getattr(s, name) for name in _TRAINING}, **_net_config(net), "data": f"{data.name} {data.split}",
            "images": _listed(data), "scores": digest,
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
    tell: Tell = _silent,
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
    _check(seeds, data)
    shard = shard_of() if shard is None else shard
    device, folder, begin = shard.device(settings.device), out / "masks", time.monotonic()
    config = {name: getattr(settings, name) for name in ("alpha", "beta", "steps", "radius")}
    config |= {**_net_config(net), "seeds": _digest_of(seeds), "data": data.name}
    nothing_there = next(folder.glob("*.png"), None) is None
    digest = same_settings(_record(folder), _plain(config), overwrite=settings.overwrite or nothing_there)
    mine = shard.take(data.samples)
    todo = [s for s in mine if settings.overwrite or png_settings(mask_path(folder, s.id)) != digest]
    tell(f"{shard}: {len(mine)} of {len(data.samples)} masks, {len(mine) - len(todo)} are in {folder}")
    remove_leftovers(folder, _DEAD)
    failed = []
    with as_found(net):
        net.to(device).eval()
        for sample, read in read_all(seeds, todo, settings.workers):
            try:
                if isinstance(read, AdvCAMError):
                    raise read
                labels = _walked(settings, net, read, device)
            except AdvCAMError as error:
                failed.append((sample.id, str(error)))
                continue
            write_mask(mask_path(folder, sample.id), labels, digest)
    speed = (len(todo) - len(failed)) / max(time.monotonic() - begin, 1e-9)
    tell(f"{shard}: {len(todo) - len(failed)} masks written, {speed:.2f} images/s")
    _raise_failures(failed, "masks")


@torch.no_grad()
def _walked(settings: PSASettings, net: AffinityNet, read: SeededImage, device: torch.device) -> Tensor:
    """The labels of one image, ``(H, W)`` uint8."""
    height, width = read.pixels.shape[1:]
    if not read.maps.classes:
        return torch.zeros(height, width, dtype=torch.uint8)
    maps = walk_maps(read.maps.high_res.to(device), settings.alpha, net.stride)
    image = normalized_pictures(read.pixels[None].to(device), net.mean, net.std)
    features = net(F.pad(image, (0, -width % net.stride, 0, -height % net.stride)))[0]
    walked = affinity_walk(maps, features, settings.radius, settings.beta, settings.steps)
    return walk_labels(walked, read.maps.classes, (height, width), net.stride)


def _scores(settings: PSASettings, seeds: MapReader, data: SegmentationData, folder: Path, tell: Tell) -> None:
    """Make the scores of this process's share, and wait for those of the ranks that train with it."""
    shard, rank = shard_of(), training_rank()
    config = {"alphas": settings.alphas, "crf": settings.crf, "seeds": _digest_of(seeds), "data": data.name}
    nothing_there = next(folder.glob("*.png"), None) is None
    digest = same_settings(_record(folder), _plain(config), overwrite=settings.overwrite or nothing_there)
    remove_leftovers(folder, _DEAD)
    mine = shard.take(data.samples)
    tell(f"{shard}: label scores of {len(mine)} of {len(data.samples)} images in {folder}")
    _raise_failures(make_scores(settings, seeds, mine, folder, digest, shard.device(settings.device)), "label scores")
    if rank.world > 1:
        _wait_for([mask_path(folder, sample.id) for sample in data.samples], digest)


def _wait_for(files: Sequence[Path], digest: str) -> None:
    missing, since = [file for file in files if png_settings(file) != digest], time.monotonic()
    while missing:
        time.sleep(0.2)
        left = [file for file in missing if png_settings(file) != digest]
        if len(left) < len(missing):
            since = time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise AdvCAMError(f"another rank has stopped: {left[0]} and {len(left) - 1} more files did not come")
        missing = left


def _loss_of(radius: int) -> Callable[[Tensor, Tensor], Tensor]:
    """PSA's loss, its means over the pairs of the whole batch, of all ranks."""

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        sums, counts = pair_losses(features, labels, radius)
        return weighed(sums, counts.new_tensor(gather(counts.tolist())).mean(0))

    return loss


def _check(seeds: MapReader, data: SegmentationData) -> None:
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    missing: list[Sample] = [sample for sample in data.samples if sample.labels and sample.id not in seeds]
    if missing:
        raise AdvCAMError(
            f"seeds of {len(missing)} of {len(data.samples)} images are missing, e.g. {missing[0].id}: make them first"
        )


def _listed(data: SegmentationData) -> str:
    """How many images, and what tells their list from others."""
    ids = "".join(f"{sample.id}\n" for sample in data.samples)
    return f"{len(data.samples)}, {hashlib.sha256(ids.encode()).hexdigest()[:8]}"


def _raise_failures(failed: Sequence[tuple[str, str]], what: str) -> None:
    if failed:
        shown = "; ".join(f"{id}: {reason}" for id, reason in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise AdvCAMError(f"{what} of {len(failed)} images could not be made ({shown}{more}); all others are there")


def _net_config(net: AffinityNet) -> dict[str, Any]:
    return {**dataclasses.asdict(net.spec), "mean": net.mean, "std": net.std, "weights": weights_digest(net)}


def _digest_of(seeds: MapReader) -> str:
    """What the seeds depend on, where they say so."""
    return str(getattr(seeds, "settings", ""))


def _record(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(config, default=str)))

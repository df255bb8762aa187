"""Refinement of seeds by a learned affinity, shared by IRN and PSA.

Labels are derived from confident parts of the seeds, a net learns affinities from them, and a random walk spreads the
seeds along these. Each step has its own folder and resumes where it was interrupted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from advcam_attr.data.masks import write_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.net_file import NetKind, load_net, save_net
from advcam_attr.pipelines.training_report import mask_training_config
from advcam_attr.runs.map_store import MapReader
from advcam_attr.runs.provenance import net_config
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard, shard_of
from advcam_attr.runs.stage import (
    SeededImage,
    check_made,
    check_method,
    check_seeds,
    ready_to_train,
    run_stage,
    seeded_stage,
)
from advcam_attr.training.fit import Group
from advcam_attr.training.loading import Items
from advcam_attr.training.losses.classification import Loss
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.training.train import TrainingTask, as_found, train

Net = TypeVar("Net", bound=nn.Module)


class AffinityMethod(ABC, Generic[Net]):
    """The differences between IRN and PSA.

    Attributes:
        labels, labels_folder: name and folder of the labels that the net is trained on.
        net_folder: folder of the training; the net is ``<net_folder>.safetensors``.
        training_fields: names of the configuration's values that a trained net depends on.
        config: has ``trained``, ``epochs``, ``batch``, ``optimizer`` and ``checkpoint_every``.
    """

    name: ClassVar[str]
    kind: ClassVar[NetKind[Any, Any]]
    labels: ClassVar[str]
    labels_folder: ClassVar[str]
    net_folder: ClassVar[str]
    training_fields: ClassVar[tuple[str, ...]]

    def __init__(self, config: Any, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime

    def make_net(self) -> Net:
        """Return the trained net that the configuration names, or one to train."""
        if self.config.trained is not None:
            net: Net = load_net(self.config.trained, self.kind)[0]
            return net
        return self.new_net()

    @abstractmethod
    def new_net(self) -> Net:
        """Return a net to train."""

    def check(self, net: Net) -> None:
        """Raise if a net cannot be trained with this configuration."""

    @abstractmethod
    def label_config(self) -> Mapping[str, Any]:
        """Return what labels depend on besides seeds and images."""

    @abstractmethod
    def label(self, image: SeededImage, device: torch.device) -> Tensor:
        """Return the labels of an image, as `write_label` takes them."""

    def write_label(self, path: Path, labels: Tensor, digest: str) -> None:
        write_mask(path, labels, digest)

    @abstractmethod
    def items(self, net: Net, data: SegmentationData, folder: Path) -> Items:
        """Return augmented images and their labels."""

    @abstractmethod
    def loss(self) -> Loss:
        """Return the loss, a mean over the pairs of the whole batch, of all ranks."""

    @abstractmethod
    def groups(self, net: Net, optimizer: Optimizer) -> Sequence[Group]:
        """Return the trained parameters."""

    def finish(self, net: Net, data: SegmentationData) -> None:
        """Complete a net after its last step, before it is saved."""

    @abstractmethod
    def walk_config(self) -> Mapping[str, Any]:
        """Return what masks depend on besides seeds, images and net."""

    @abstractmethod
    def mask(self, net: Net, image: SeededImage, device: torch.device) -> Tensor:
        """Return the mask of an image after the walk, ``(H, W)`` uint8."""


def refine_by_affinity(method: AffinityMethod[Any], seeds: MapReader, data: SegmentationData, out: Path) -> None:
    """Refine seeds into the masks ``out/masks/<id>.png``.

    Under ``torchrun`` or ``srun``, processes share each step. In a SLURM array labels and masks are shared, but the
    training is one job's: run the command once outside of the array in between.

    Raises:
        AdvCAMError: Seeds are missing, a folder was made with other settings, or some images failed; all others are
            done then.
    """
    check_seeds(seeds, data)
    check_method(out / "masks", method.name, overwrite=method.runtime.overwrite)
    net = method.make_net()
    if method.config.trained is None:
        method.check(net)
        make_labels(method, seeds, data, out)
        weights = out / method.net_folder / _weights(method)
        ready_to_train(method.labels, out / method.labels_folder, method.kind.spec.title, weights, data)
        net = train_affinity(method, net, data, out)
    write_masks(method, net, seeds, data, out)


def make_labels(
    method: AffinityMethod[Any], seeds: MapReader, data: SegmentationData, out: Path, shard: Shard | None = None
) -> None:
    """Write the labels of a share of the images to ``out/<labels_folder>/<id>.png``."""
    shard = shard_of() if shard is None else shard
    make = partial(method.label, device=method.runtime.torch_device(shard))
    folder, config = out / method.labels_folder, method.label_config()
    stage = seeded_stage(method.labels, folder, config, seeds, data, make, method.write_label)
    run_stage(stage, data, workers=method.runtime.workers, overwrite=method.runtime.overwrite, shard=shard)


def train_affinity(method: AffinityMethod[Net], net: Net, data: SegmentationData, out: Path) -> Net:
    """Train a net in place on the labels in ``out/<labels_folder>``, or resume its training.

    Returns:
        The net as saved, ``out/<net_folder>/<net_folder>.safetensors``, in eval mode.
    """
    config, labels = method.config, out / method.labels_folder
    digest = check_made(labels, data, method.labels)
    method.check(net)

    def save(path: Path) -> None:
        method.finish(net, data)
        save_net(path, net)

    task = TrainingTask(
        name=method.kind.spec.title,
        net=net,
        items=method.items(net, data, labels),
        loss=method.loss(),
        groups=method.groups(net, config.optimizer),
        optimizer=config.optimizer,
        epochs=config.epochs,
        batch=config.batch,
        runtime=method.runtime,
        checkpoint_every=config.checkpoint_every,
        depends_on=mask_training_config(config, method.training_fields, net, method.runtime, data, labels=digest),
        save=save,
        file=_weights(method),
    )
    trained: Net = load_net(train(task, out / method.net_folder), method.kind)[0]
    return trained


def write_masks(
    method: AffinityMethod[Any],
    net: nn.Module,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
    shard: Shard | None = None,
) -> None:
    """Write the masks of a share of the images to ``out/masks/<id>.png``."""
    check_seeds(seeds, data)
    shard = shard_of() if shard is None else shard
    device = method.runtime.torch_device(shard)
    config = {"method": method.name, **method.walk_config(), **net_config(net, net.spec)}
    stage = seeded_stage("masks", out / "masks", config, seeds, data, partial(method.mask, net, device=device))
    with as_found(net):
        net.to(device).eval()
        run_stage(stage, data, workers=method.runtime.workers, overwrite=method.runtime.overwrite, shard=shard)


def _weights(method: AffinityMethod[Any]) -> str:
    return f"{method.net_folder}.safetensors"

"""A folder in; toy scenes as a segmentation data set in it, and the demonstration's net, out."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.data.toy import CLASS_NAMES, make_scenes
from advcam_attr.files import replacing, write_bytes
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.pipelines.demo import DemoSettings, small_net, train_net
from advcam_attr.types import Sample

#: The demonstration's own seeds: of the scenes that its net learns from, and of its test scenes.
TRAIN_SEED, TEST_SEED = 0, 2

#: The normalisation that `advcam_attr.pipelines.demo.normalise` applies.
MEAN, STD = (0.5,), (0.25,)


def toy_net(folder: Path) -> nn.Module:
    """The demonstration's net: from ``net.safetensors`` of a folder, or trained (half a minute) and kept there."""
    path = folder / "net.safetensors"
    net: nn.Module = small_net().eval()
    if path.is_file():
        load_weights(net, read_checkpoint(path), "the net of the toy scenes")
        return net
    settings = DemoSettings()
    net = train_net(make_scenes(settings.train, size=settings.size, seed=TRAIN_SEED), settings.epochs)
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in net.state_dict().items()}))
    return net


def toy_data(folder: Path, count: int) -> SegmentationData:
    """Test scenes of the demonstration as files, with their masks.

    Args:
        folder: for one ``NNNN.png`` a scene; those that are there are kept.
        count: how many.
    """
    scenes = make_scenes(count, seed=TEST_SEED)
    samples = []
    for n, (picture, labels) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
        path = folder / f"{n:04d}.png"
        if not path.is_file():
            values = (picture * 255).round().byte().permute(1, 2, 0).numpy()
            with replacing(path) as file:
                Image.fromarray(values).save(file)
        samples.append(Sample(path.stem, path, tuple(labels.nonzero()[:, 0].tolist())))

    def mask(sample: Sample) -> Tensor:
        return scenes.masks[int(sample.id)]

    return SegmentationData("toy", folder, "test", CLASS_NAMES, tuple(samples), mask)

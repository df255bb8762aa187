"""Random images, a small net, and a script that makes its seeds under any launcher."""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from advcam_attr.data.samples import SegmentationData
from advcam_attr.pipelines.maps import MapSettings, make_seeds, seed_store
from advcam_attr.runs.runtime import Runtime
from advcam_attr.types import AdvCAMError, Sample

SIZES = ((20, 28), (28, 20), (24, 24))
SETTINGS = MapSettings(
    recipe="official", overrides={"steps": 3}, scales=(1.0, 0.5), cells="irn", runtime=Runtime(workers=1)
)


def small_classifier() -> nn.Module:
    """Five classes, stride 4, no bias after the pool, weights that are the same everywhere."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5, bias=False),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return net.eval()


def random_data(folder: Path, count: int) -> SegmentationData:
    """Pictures of three sizes, each with none to three of five classes; made once, then found again."""

    def no_mask(sample: Sample) -> torch.Tensor:
        raise AdvCAMError(f"no mask of {sample.id}")

    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for n in range(count):
        size = SIZES[random.integers(len(SIZES))]
        labels = tuple(sorted(random.choice(5, random.integers(0, 4), replace=False).tolist()))
        coarse = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        path = folder / f"{n:04d}.png"
        if not path.exists():
            Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(f"{n:04d}", path, labels))
    return SegmentationData("random", folder, "all", ("a", "b", "c", "d", "e"), tuple(samples), no_mask)


def same_maps(one: Path, two: Path, ids: Iterable[str], steps: int | None = None, tolerance: float = 0.0) -> None:
    """Assert that two runs have the same maps."""
    for id in ids:
        a, b = seed_store(one, steps).read(id), seed_store(two).read(id)
        assert (a.classes, a.size) == (b.classes, b.size)
        torch.testing.assert_close(a.high_res, b.high_res, rtol=0, atol=tolerance)
        torch.testing.assert_close(a.cam, b.cam, rtol=0, atol=tolerance)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_seeds(small_classifier(), random_data(Path(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3]), SETTINGS)

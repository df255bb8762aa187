"""Seeds lie over the pixels that their net's cells see, whatever its stride."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import cam_net
from advcam_attr.networks.seam import SEAM
from advcam_attr.pipelines.map_settings import config_dict
from advcam_attr.pipelines.maps import MapSettings, make_seeds, seed_store
from advcam_attr.refine.seeds import class_maps, min_max_normalized, threshold_maps
from advcam_attr.runs.runtime import Runtime
from advcam_attr.types import AdvCAMError, Sample
from seed_run import random_data, small_classifier

SETTINGS = MapSettings("cam", mean=(0.0,), std=(1.0,), scales=(1.0, 2.0), runtime=Runtime(workers=0))
WIDTH, HEIGHT = 250, 100


def redness(stride: int) -> nn.Module:
    """A net whose first class is the mean red of the 3 x 3 pixels around each multiple of a stride."""
    net = nn.Sequential(
        nn.Conv2d(3, 1, 3, stride=stride, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1, 2, bias=False),
    )
    with torch.no_grad():
        net[0].weight.zero_()[:, 0] = 1 / 9
        net[3].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return net.eval()


@pytest.fixture
def blob(tmp_path):
    """A photograph with a red object at the right, and the pixels of more than 0.3 of its peak."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red = np.exp(-(((y - 60) / 25) ** 2) - ((x - 210) / 25) ** 2)
    path = tmp_path / "blob.png"
    Image.fromarray(np.stack([np.uint8(np.round(255 * red)), *np.zeros((2, HEIGHT, WIDTH), np.uint8)], 2)).save(path)
    data = replace(random_data(tmp_path / "none", 1), samples=(Sample("blob", path, (0,)),))
    return data, torch.from_numpy(red > 0.3)


def overlap(store, truth) -> float:
    seed = threshold_maps(store.read("blob").high_res, (0,), 0.3) == 1
    return float((seed & truth).sum() / (seed | truth).sum())


@pytest.mark.parametrize("stride", [4, 8, 12])
def test_seeds_cover_their_object(tmp_path, blob, stride):
    data, truth = blob
    make_seeds(redness(stride), data, tmp_path / "own", replace(SETTINGS, cells="centres"))
    make_seeds(redness(stride), data, tmp_path / "blocks", SETTINGS)
    make_seeds(redness(stride), data, tmp_path / "irn", replace(SETTINGS, cells="irn"))
    own, blocks, released = (overlap(seed_store(tmp_path / name), truth) for name in ("own", "blocks", "irn"))
    assert own > 0.93
    assert own > blocks > released + 0.02
    cells = seed_store(tmp_path / "own").read_grids("blob").cells
    columns = -(-WIDTH // stride)
    assert [one.stride for one in cells] == [(stride, stride), (stride / 2, stride / 2)]
    assert cells[0].offset == (0, (WIDTH - 1 - stride * (columns - 1)) / 2), "of an image and its mirror image"


def test_irn_keeps_the_released_cells_at_stride_16_alone():
    settings = replace(SETTINGS, scales=(1.0,))
    irn = cam_net(Backbone("torchvision/resnet50", random_weights=True), 2)
    assert "cells" not in config_dict(settings, irn, "d", None)
    fine = copy.copy(irn)
    fine.stride = 8
    for net, own in {irn: "irn", fine: "blocks", SEAM(2, 1): "centres", small_classifier(): "blocks"}.items():
        assert settings.cell_layout(net) == own
        for layout in ("blocks", "centres", "irn"):
            assert replace(settings, cells=layout).cell_layout(net) == layout
        assert replace(settings, size=(32, 32)).cell_layout(net) == "irn", "boxes are of stretched maps (Choe et al.)"


def test_seam_normalises_by_the_range(tmp_path, blob):
    data, _ = blob
    make_seeds(redness(8), data, tmp_path / "peak", SETTINGS)
    make_seeds(redness(8), data, tmp_path / "seam", replace(SETTINGS, normalization="seam"))
    peak, seam = (seed_store(tmp_path / name) for name in ("peak", "seam"))
    grids = replace(peak.read_grids("blob"), normalization="seam")
    assert torch.equal(seam.read("blob").high_res, class_maps(grids).high_res)
    torch.testing.assert_close(
        seam.read("blob").high_res, min_max_normalized(peak.read("blob").high_res), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("change", [{"cells": "irn"}, {"normalization": "seam"}])
def test_a_folder_is_of_one_layout_and_normalisation(tmp_path, blob, change):
    data, _ = blob
    make_seeds(redness(8), data, tmp_path, SETTINGS)
    with pytest.raises(AdvCAMError, match=next(iter(change))):
        make_seeds(redness(8), data, tmp_path, replace(SETTINGS, **change))


@pytest.mark.parametrize("change", [{"cells": "middle"}, {"normalization": "max"}])
def test_unknown_layouts_raise(change):
    with pytest.raises(AdvCAMError, match=next(iter(change.values()))):
        replace(SETTINGS, **change)


@pytest.mark.parametrize(
    "cells", [[], [[0, 0, 8, 8]] * 3, [[0, 0, 8]], [[0, 0, 8, 0]], [[0, float("nan"), 8, 8]], [["a"] * 4], 7, [None]]
)
def test_damaged_cells_are_no_maps(tmp_path, blob, cells):
    from safetensors.torch import load_file, save_file

    data, _ = blob
    make_seeds(redness(8), data, tmp_path, SETTINGS)
    path, about = seed_store(tmp_path).path("blob"), {"classes": [0], "size": [HEIGHT, WIDTH], "settings": ""}
    tensors = load_file(path)
    save_file(
        tensors, path, {"advcam_maps": json.dumps({**about, "cells": cells, "settings": seed_store(tmp_path).settings})}
    )
    if cells:
        with pytest.raises(AdvCAMError, match="damaged or no file of maps"):
            seed_store(tmp_path).read("blob")
    else:
        assert seed_store(tmp_path).read_grids("blob").cells == (), "IRN's"


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_a_photograph_of_a_few_pixels_does_not_stop_the_others(tmp_path, size):
    """Whether it comes first or last; a net that fits no photograph does."""
    data = random_data(tmp_path / "more", 5)
    Image.new("RGB", size, "red").save(tmp_path / "tiny.png")
    tiny, others = Sample("tiny", tmp_path / "tiny.png", (0,)), data.samples
    for name, samples in (("first", (tiny, *others)), ("last", (*others, tiny))):
        summary = make_seeds(small_classifier(), replace(data, samples=samples), tmp_path / name, SETTINGS)
        assert (summary.written, [id for id, _ in summary.failed]) == (5, ["tiny"])
    with pytest.raises(AdvCAMError):
        make_seeds(small_classifier(), replace(data, samples=(tiny,)), tmp_path / "alone", SETTINGS)
    missing = replace(data, samples=(tiny, *(replace(s, labels=(7,)) for s in others)))
    with pytest.raises(AdvCAMError, match="class 7, and the net has 5"):
        make_seeds(small_classifier(), missing, tmp_path / "net", replace(SETTINGS, batch=1))

"""IRN's confident labels, PSA's label scores, and ambiguous pixels."""

import pytest
import torch
from torch import Tensor

from advcam_attr.refine import affinity_labels as confident
from advcam_attr.refine.affinity_labels import ir_label, psa_scores
from advcam_attr.refine.crf import DenseCRF, unary_from_labels, unary_from_scores
from advcam_attr.refine.saliency import ambiguous
from advcam_attr.types import AdvCAMError, ClassMaps


def maps_of(high_res: Tensor, *classes: int) -> ClassMaps:
    return ClassMaps(classes=classes, size=tuple(high_res.shape[1:]), cam=high_res[:, ::4, ::4], high_res=high_res)


@pytest.fixture
def scene() -> tuple[ClassMaps, Tensor]:
    """Two objects on a uniform ground: a dark square and a bright bar, with maps that peak inside and reach beyond."""
    image = torch.full((3, 30, 40), 120, dtype=torch.uint8)
    image[:, 8:22, 4:16] = 10
    image[:, 4:26, 28:36] = 240
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    square = torch.exp(-(((y - 15) / 8) ** 2) - ((x - 10) / 7) ** 2)
    bar = torch.exp(-(((y - 15) / 11) ** 2) - ((x - 32) / 5) ** 2)
    return maps_of(torch.stack([square, bar]), 2, 11), image


def test_ir_label_equals_the_steps_one_by_one(scene):
    maps, image = scene
    refined = []
    for threshold in (0.35, 0.15):
        seed = torch.zeros(1, 30, 40, dtype=torch.long)
        for y in range(30):
            for x in range(40):
                square, bar = maps.high_res[:, y, x].tolist()
                seed[0, y, x] = 0 if max(square, bar) <= threshold else 1 if square >= bar else 2
        refined.append(DenseCRF(image[None], "irn")(unary_from_labels(seed, 3)).argmax(1)[0])
    sure, likely = refined
    expected = torch.tensor([0, 3, 12])[sure]
    expected[(sure == 0) & (likely > 0)] = 255
    found = ir_label(maps, image)
    assert torch.equal(found.long(), expected)
    assert found.dtype == torch.uint8


def test_ir_label_is_wider_with_its_thresholds(scene):
    maps, image = scene
    labels = ir_label(maps, image)
    assert (labels[8:22, 4:16] == 3).float().mean() > 0.9
    assert (labels[4:26, 28:36] == 12).float().mean() > 0.9
    assert int(labels[0, 20]) == 0
    assert not (ir_label(maps, image, foreground=0.2, background=0.2) == 255).any()
    assert (ir_label(maps, image, foreground=0.6, background=0.02) == 255).any()


def test_maps_of_zeros_and_no_classes_are_background(scene):
    image = scene[1]
    assert int(ir_label(maps_of(torch.zeros(2, 30, 40), 2, 11), image).max()) == 0
    assert int(ir_label(maps_of(torch.zeros(0, 30, 40)), image).max()) == 0
    assert torch.equal(psa_scores(maps_of(torch.zeros(0, 30, 40)), image)[0], torch.ones(1, 30, 40))
    low, high = psa_scores(maps_of(torch.zeros(2, 30, 40), 2, 11), image)
    assert low.argmax(0).max() == high.argmax(0).max() == 0


def test_psa_scores_equal_the_steps_one_by_one(scene):
    maps, image = scene
    low, high = psa_scores(maps, image)
    for scores, alpha in ((low, 4), (high, 32)):
        background = (1 - torch.maximum(*maps.high_res)) ** alpha
        expected = DenseCRF(image[None], "psa")(unary_from_scores(torch.stack([background, *maps.high_res])[None]))[0]
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert (low.argmax(0) == 0).sum() > (high.argmax(0) == 0).sum()


def test_lattices_are_built_once(scene, monkeypatch):
    made = []

    class Counted(DenseCRF):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(confident, "DenseCRF", Counted)
    ir_label(*scene)
    psa_scores(*scene)
    assert len(made) == 2


def test_ambiguous_by_hand():
    labels = torch.tensor([[0, 0, 5, 5, 255, 255]], dtype=torch.uint8)
    saliency = torch.tensor([[0.5, 0.51, 0.5, 0.51, 0.0, 1.0]])
    before = labels.clone()
    assert ambiguous(labels, saliency).tolist() == [[0, 255, 255, 5, 255, 255]]
    assert torch.equal(labels, before)
    assert ambiguous(labels, saliency, threshold=0.9).tolist() == [[0, 0, 255, 255, 255, 255]]


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda maps, image: ir_label(maps, image[:, :20]), "image of 20 x 40"),
        (lambda maps, image: psa_scores(maps, image[:, :20]), "image of 20 x 40"),
        (lambda maps, image: ir_label(maps, image, background=0.4), "background threshold 0.4"),
        (lambda *_: ambiguous(torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(4, 3)), "differ in size"),
        (lambda *_: ambiguous(torch.zeros(3, 4, dtype=torch.uint8), torch.full((3, 4), 200)), "by 255"),
    ],
)
def test_bad_input_raises(scene, call, word):
    with pytest.raises(AdvCAMError, match=word):
        call(*scene)

"""What a stage could not use is an error before anything is trained or written, of the run and of its dry run alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advcam_attr.cli import main as cli
from advcam_attr.networks import cct, wsol
from advcam_attr.pipelines.wsss import classifier, irn, segment
from advcam_attr.training import train as training
from advcam_attr.types import AdvCAMError
from command_line import declared
from tiny_runs import configurations

pytest.importorskip("cv2")

BAD: dict[str, list[tuple[str, str]]] = {
    "wsss": [
        ("--seeds.recipe offical", "unknown recipe 'offical'"),
        ("--seeds.overrides {stepz: 1}", "unknown option 'stepz'"),
        ("--seeds.base cem", "unknown base 'cem'"),
        ("--seeds.saliency nowhere", "no such folder of saliency maps: nowhere"),
        ("--refine.method xx", "unknown refine.method 'xx'"),
        ("--refine.irn.backbone.name timm/resnet1", "unknown model 'timm/resnet1'"),
        ("--refine.irn.backbone.checkpoint none.pth --refine.irn.backbone.random_weights false", "none.pth"),
        ("--refine.irn.trained none.safetensors", "none.safetensors"),
        ("--refine.irn.batch 9", "refine.irn: 3 images, fewer than one batch of 9"),
        ("--refine.method psa --refine.psa.crop 450 --refine.psa.backbone.name timm/resnet18 "
         "--refine.psa.backbone.random_weights true", "psa: a crop of 450 pixels does not fit"),
        ("--refine.saliency nowhere", "no such folder of saliency maps: nowhere"),
        ("--segmentation.backbone.name timm/resnet1", "unknown model 'timm/resnet1'"),
        ("--segmentation.trained none.safetensors", "none.safetensors"),
        ("--segmentation.class_map none.json", "none.json"),
        ("--segmentation.batch 9", "segmentation: 3 images, fewer than one batch of 9"),
        ("--segmentation.grad_accum 3", "segmentation: a batch of 2 cannot be shared by 1 ranks in 3 parts"),
        ("--net.generator seam --net.backbone.random_weights false", "needs its authors' file"),
        ("--net.generator seam --net.backbone.checkpoint none.pth --net.backbone.random_weights false", "none.pth"),
        ("--net.class_map none.json", "none.json"),
        ("--classifier.batch 9", "voc train: 3 images, fewer than one batch of 9"),
        ("--data.val nope", "'nope'"),
        ("--data.score val", "2 of 2 images of val (data.score) are not among those of train"),
        ("--data.score unmasked", "no image of voc unmasked at"),
        ("--runtime.device abacus", "'abacus'"),
        ("--runtime.autocast float16 --runtime.device cpu", "float16 training needs a GPU"),
        ("--logger wandb", "pip install wandb"),
        ("--run file/run", "a run needs a folder, but file is a file"),
    ],
    "semi": [
        ("--net.backbone.name timm/resnet1", "unknown model 'timm/resnet1'"),
        ("--net.backbone.checkpoint none.pth --net.backbone.random_weights false", "none.pth"),
        ("--net.auxiliary {droput: 1}", "droput"),
        ("--training.crop 33", "training.crop must be a multiple of the net's stride"),
        ("--training.batch 9", "fewer than one batch of 9"),
        ("--predict.crf deplab", "unknown CRF recipe 'deplab'"),
        ("--predict.split nope", "'nope'"),
        ("--predict.split unmasked", "no image of voc unmasked at"),
        ("--data.pseudo nowhere", "pseudo masks of 2 of 2 unlabelled images are missing"),
        ("--runtime.device abacus", "'abacus'"),
        ("--logger wandb", "pip install wandb"),
        ("--run file/run", "a run needs a folder, but file is a file"),
    ],
    "wsol": [
        ("--maps.recipe wsoll", "unknown recipe 'wsoll'"),
        ("--maps.overrides {stepz: 1}", "unknown option 'stepz'"),
        ("--maps.base cem", "unknown base 'cem'"),
        ("--classifier.backbone.name timm/resnet1", "unknown model 'timm/resnet1'"),
        ("--classifier.backbone.checkpoint none.pth --classifier.backbone.random_weights false", "none.pth"),
        ("--trainings {CAM: {}, Other: {batch: 9}}", "cub train: 2 images, fewer than one batch of 9"),
        ("--data.val nope", "nope"),
        ("--score.search union-find", "Numba"),
        ("--runtime.device abacus", "'abacus'"),
        ("--runtime.autocast float16 --runtime.device cpu", "float16 training needs a GPU"),
        ("--logger wandb", "pip install wandb"),
        ("--net.checkpoint none.pth", "none.pth"),
        ("--net.model timm/test_resnet --net.random_weights true --net.mean [0.5] --net.std [0.5] --net.layer nope",
         "no layer 'nope'"),
        ("--run file/run", "a run needs a folder, but file is a file"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = configurations(tmp_path_factory.mktemp("data"))
    (folder / "file").touch()
    return folder


NETS: dict[str, Any] = {}


def made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Nets are slow to make, and the checks leave them as they are."""

    def made(*args: Any, **options: Any) -> Any:
        key = f"{make.__name__} {args} {options}"
        if key not in NETS:
            NETS[key] = make(*args, **options)
        return NETS[key]

    return made


@pytest.fixture
def folder(data, monkeypatch) -> Path:
    def fit(*args, **options):
        raise AssertionError("trained")

    monkeypatch.chdir(data)
    monkeypatch.setattr(training, "fit", fit)
    makers = {classifier: "cam_net", irn: "irnet", segment: "deeplab", wsol: "wsol_net", cct: "cct_net"}
    for module, name in makers.items():
        monkeypatch.setattr(module, name, made_once(getattr(module, name)))
    for package in ("wandb", "numba"):
        monkeypatch.setitem(sys.modules, package, None)
    return data


def refused(stage: str, words: list[str], capsys) -> str:
    """Return the error of a run; parsers are made once."""
    parser = declared((stage, "run"))
    command = cli.COMMANDS[stage].commands["run"]
    with pytest.raises(AdvCAMError) as raised:
        command.run(parser.instantiate(parser.parse_args(["--config", f"{stage}.yaml", *words])))
    assert capsys.readouterr().out == ""
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("dry", [[], pytest.param(["--dry-run"], marks=pytest.mark.slow)], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("stage", "options", "message"), [(stage, *one) for stage, some in BAD.items() for one in some]
)
def test_nothing_is_trained_or_written(folder, capsys, stage, options, message, dry):
    before = sorted(folder.rglob("*"))
    words = [word.replace("+", " ") for word in options.replace(": ", ":+").replace(", ", ",+").split()]
    assert message in refused(stage, [*words, *dry], capsys)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("stage", BAD)
def test_a_dry_run_lists_all_stages(folder, capsys, stage):
    before = sorted(folder.rglob("*"))
    assert cli.main([stage, "run", "--config", f"{stage}.yaml", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {line.rsplit(", ", 1)[1] for line in out.splitlines()} == {"to do"}
    assert len(out.splitlines()) == {"wsss": 1 + 2 + 2 + 2 * 3, "semi": 2, "wsol": 1 + 3}[stage]
    assert sorted(folder.rglob("*")) == before

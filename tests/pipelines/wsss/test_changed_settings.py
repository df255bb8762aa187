"""Settings that are no longer those of a run folder's results."""

from dataclasses import replace

import pytest

from advcam_attr.networks.backbone import Backbone
from advcam_attr.pipelines.config import CONFIG, changed_settings, recorded_config
from advcam_attr.pipelines.wsss import plan
from advcam_attr.pipelines.wsss.config import DataConfig, NetConfig, SeedConfig, WSSSConfig
from advcam_attr.pipelines.wsss.run import Run
from advcam_attr.pipelines.wsss.score import evaluate
from advcam_attr.runs.runtime import Runtime
from advcam_attr.types import AdvCAMError
from tiny_voc import write_voc


@pytest.fixture
def config(tmp_path) -> WSSSConfig:
    write_voc(tmp_path / "VOC2012", {"train": {"a": ["dog"]}, "val": {"b": ["cat"]}}, size=(24, 32))
    net = NetConfig(Backbone("timm/test_resnet", random_weights=True))
    data = DataConfig(str(tmp_path / "VOC2012"), train="train")
    return WSSSConfig(str(tmp_path / "run"), data, net, seeds=SeedConfig(methods=("cam",)))


CHANGES = {
    "seeds.recipe": lambda c: replace(c, seeds=replace(c.seeds, recipe="auto")),
    "seeds.cells": lambda c: replace(c, seeds=replace(c.seeds, cells="irn")),
    "net.backbone.stride": lambda c: replace(c, net=NetConfig(replace(c.net.backbone, stride=8))),
    "classifier.epochs": lambda c: replace(c, classifier=replace(c.classifier, epochs=2)),
    "refine.crf_threshold": lambda c: replace(c, refine=replace(c.refine, crf_threshold=0.3)),
    "segmentation.steps": lambda c: replace(c, segmentation=replace(c.segmentation, steps=7)),
}
HARMLESS = [
    lambda c: c,
    lambda c: replace(c, runtime=Runtime("cpu", workers=3)),
    lambda c: replace(c, seeds=replace(c.seeds, batch=2, methods=("cam", "advcam"))),
    lambda c: replace(c, score=replace(c.score, thresholds="seam")),
    lambda c: replace(c, data=replace(c.data, score="val", root=c.data.root + "/../VOC2012")),
]


@pytest.mark.parametrize("name", CHANGES)
def test_scores_of_other_settings_raise(config, name):
    with recorded_config(Run(config).folder(), config):
        pass
    with pytest.raises(
        AdvCAMError, match=rf"was made with other settings \({name} was .*--config .*config.json"
    ) as found:
        evaluate(Run(CHANGES[name](config)))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("change", HARMLESS)
def test_what_results_do_not_depend_on_may_change(config, change):
    run = Run(config).folder()
    with recorded_config(run, config):
        pass
    with pytest.raises(AdvCAMError, match="no seeds in"):
        evaluate(Run(change(config)))


def test_unreadable_configurations_are_not_compared(config):
    run = Run(config).folder()
    assert changed_settings(run, config, "seeds") == ""
    run.mkdir()
    for content in ("", "[1]", '{"seeds": {"recipe": "auto", "gone": 1}}', '{"seeds": 3}'):
        (run / CONFIG).write_text(content)
        found = "seeds.recipe was auto, is official" if "gone" in content else ""
        assert changed_settings(run, config, "seeds") == found


def test_the_plan_names_changed_settings(config, monkeypatch):
    monkeypatch.setattr(plan, "check_run", lambda run: None)
    run = Run(config)
    with recorded_config(run.folder(), config):
        pass
    for name in ("seeds/cam/maps/a.safetensors", "refined/cam/masks/a.png", "classifier/classifier.safetensors"):
        (run.folder() / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder() / name).touch()
    assert [str(stage).rsplit(", ", 1)[1] for stage in plan.progress(run)[:3]] == ["done"] * 3
    classifier, seeds, refine, training, _ = map(str, plan.progress(Run(CHANGES["seeds.recipe"](config)))[:5])
    assert classifier.endswith("done")
    for stage in (seeds, refine):
        assert stage.endswith("1 of 1 images, made with other settings (seeds.recipe was official, is auto)")
    assert training.endswith("0 of 30000 steps, to do")

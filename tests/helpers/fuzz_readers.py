"""The table of all readers of files: every module of the package that reads one is named in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

import fuzz_files as f
from advcam_attr.cli import semi, wsol, wsss
from advcam_attr.data.class_names import read_class_map
from advcam_attr.data.imagenet import read_box_annotation
from advcam_attr.data.instances import read_instances
from advcam_attr.data.labels import read_annotation, read_label_table, read_list
from advcam_attr.data.masks import read_labels
from advcam_attr.data.npy import read_npy
from advcam_attr.data.voc import CLASSES
from advcam_attr.data.wsol_metadata import read_wsol_metadata
from advcam_attr.files import difference, write_json
from advcam_attr.metrics.evaluation import Scope, SeedEvaluation
from advcam_attr.metrics.localization import BoxTable, localization_scores
from advcam_attr.metrics.seeds import ImageCounts, ThresholdSweep
from advcam_attr.networks.generators import load_generator
from advcam_attr.networks.load import read_labels as read_names
from advcam_attr.pipelines.evaluate import load_counts, save_counts
from advcam_attr.pipelines.maps import read_predictions
from advcam_attr.pipelines.wsol.evaluate import REPORT, load_table, save_table
from advcam_attr.pipelines.wsss.config import DataConfig
from advcam_attr.pipelines.wsss.psa import read_scores
from advcam_attr.pipelines.wsss.score import read_net_score
from advcam_attr.pipelines.wsss.submission import check_submitted
from advcam_attr.reading import read_yaml
from advcam_attr.report.attribution import attribution_sections
from advcam_attr.report.gallery import read_config
from advcam_attr.report.run import score_sections, table_sections
from advcam_attr.report.wsol import _best_threshold
from advcam_attr.runs.npy_maps import read_dictionary
from advcam_attr.runs.provenance import image_sizes, planned, read_record
from advcam_attr.training.checkpoint import own_randomness, random_states, read_training, restore
from advcam_attr.training.log import json_log, read_log
from advcam_attr.types import AdvCAMError, Sample
from fuzz_run import Reader
from tiny_wsol import write_cub


def training_net() -> SimpleNamespace:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return SimpleNamespace(model=net, optimizer=optimizer, scaler=scaler, ema=None, step=3)


def checkpoint() -> bytes:
    state = training_net()
    parts = {name: getattr(state, name).state_dict() for name in ("model", "optimizer", "scaler")}
    return f.torch_file(
        {"config": {"seed": 1}, "step": 3, **parts, "random": [random_states(torch.device("cpu"))]}, True
    )


def resume(folder: Path) -> None:
    content = read_training(folder / "checkpoint.pt")
    with own_randomness(torch.device("cpu")):
        restore(training_net(), content)


LOG = b"".join(b'{"step": %d, "loss": %.3f, "lr": 0.1}\n' % (n, 1 / (n + 1)) for n in range(5))


def read_logs(folder: Path) -> None:
    read_log(folder / "log.jsonl")
    with json_log(folder / "log.jsonl", resume_at=3):
        pass


def records(root: Path) -> None:
    write_json(root / "maps.json", {"digest": "0123456789abcdef", "settings": {"steps": 8, "base": "cam"}})
    write_json(root / "sizes.json", {"a": [5, 7]})
    (root / "a.png").write_bytes(f.PICTURE)
    job = {"image": "/none/a.png", "image_digest": "", "config": {"steps": 8}, "files": ["a.cat.png"]}
    job |= {"input_size": [5, 7], "targets": [TARGET]}
    write_json(root / "out" / "a.json", job)
    (root / "predictions").mkdir()
    (root / "predictions" / "0123456789abcdef-0of1.jsonl").write_text('\n["a", 3]\n["b", 4]\n')


def read_records(folder: Path) -> None:
    difference((read_record(folder / "maps.json") or {}).get("settings") or {}, {"steps": 8})
    image_sizes([Sample("a", folder / "a.png", ())], folder / "sizes.json", 0)
    read_predictions(folder)
    for settings, overwrite in (({"steps": 8}, False), ({"steps": 9}, True)):
        planned([Path("/none/a.png")], folder / "out", settings, overwrite=overwrite)


SCORES = {"data": "voc val", "images": 3, "scores": {"mean_iou": 0.5, "precision": 0.25, "x": 3}}
TARGET = {
    "index": 1, "name": "cat", "overlay": "a.cat.png",
    "scores": [{"scale": 1.0, "logit": [0.5, 2.0], "probability": [0.1, 0.9]}],
}  # fmt: skip


def report(root: Path) -> None:
    write_json(root / "evaluation.json", SCORES)
    (root / "tables.md").write_text("# Table I\n\n| a | b |\n|---|---|\n| 1 | 2.5 |\n\nA line.\n")
    (root / "a.cat.png").write_bytes(f.encoded(Image.new("RGB", (700, 280)), "PNG"))
    record = {"image": "a.png", "config": {"model.spec": "x"}, "targets": [TARGET], "files": [], "input_size": [5, 7]}
    write_json(root / "a.json", record)
    maps = {name: torch.rand(1, 5, 7) for name in ("advcam", "base")}
    (root / "a.safetensors").write_bytes(save({**maps, "steps": torch.rand(1, 3, 2, 3)}))
    write_json(root / "maps.json", {"digest": "0" * 16, "settings": {"steps": 8}})
    located = {"maps": {"steps": 8}, "scores": {"all": {"gt_known_threshold": 0.25}}}
    write_json(root / REPORT, located)
    write_json(root / "config.json", {"data": {"root": "x", "kind": "voc"}, "run": "y"})


def read_report(folder: Path) -> None:
    table_sections(folder, 5)
    score_sections(folder, 5)
    read_config(folder, "data", DataConfig)
    read_net_score(folder / "evaluation.json")
    _best_threshold(folder)
    attribution_sections(folder, 5)


def counts(root: Path) -> None:
    sweep, images = ThresholdSweep([0.2, 0.5], 3), ImageCounts(2, 3)
    found = sweep.histogram(torch.rand(1, 4, 4), [0], torch.ones(4, 4, dtype=torch.uint8))
    sweep.add(found, [0])
    images.add(found, [0])
    save_counts(
        SeedEvaluation(Scope("voc val", ("a", "b"), ("x",), {"y": "no"}), sweep, images), root / "counts.safetensors"
    )
    table = BoxTable(("x",), torch.rand(1, 255, dtype=torch.float64), torch.ones(1, dtype=torch.uint8), None, "all")
    save_table(table, root / "boxes.safetensors")


def read_counts(folder: Path) -> None:
    load_counts(folder / "counts.safetensors").describe()
    localization_scores(load_table(folder / "boxes.safetensors"))


def configs() -> list[f.Files]:
    found = {
        "wsss": {"run": "r", "data": {"root": "x"}, "seeds": {"methods": ["cam"], "scales": [1.0]}},
        "semi": {"run": "r", "data": {"root": "x"}},
        "wsol": {"run": "r", "data": {"kind": "cub", "root": "x"}},
    }
    return [{f"{name}.json": json.dumps(content, indent=1).encode()} for name, content in found.items()]


def read_options(folder: Path) -> None:
    for command in (wsss, semi, wsol):
        path = folder / f"{command.__name__.rpartition('.')[2]}.json"
        if path.exists():
            command.OPTIONS.read(path)


YAML = b"""# a comment
run: runs/voc_small
data: &data {kind: voc, root: $ADVCAM_DATA/voc}
net:
  mean: [0.5, 0.5, 0.5]
  stride: 16
  date: 2020-01-02
other: *data
text: |
  two
  lines
"""


def read_only_yaml(folder: Path) -> None:
    try:
        json.dumps(read_yaml(folder / "a.yaml"), default=str, skipkeys=True)
    except ValueError as error:
        raise AdvCAMError(str(error)) from error


def net(metadata: dict[str, str]) -> list[f.Files]:
    return [{"net.safetensors": save(f.WEIGHTS, metadata)}]


def seeds(make: Callable[[Path], object]) -> Callable[[], list[f.Files]]:
    return lambda: [f.files_of(make)]


def at(name: str, read: Callable[..., object], *arguments: object) -> Callable[[Path], object]:
    return lambda folder: read(folder / name, *arguments)


SAFE = f.SAFETENSORS

REPORTS = ("report/run", "report/attribution", "report/gallery", "report/wsol", "pipelines/wsss/score")

RECORDS = ("maps.json", "sizes.json", "out/a.json", "predictions/0123456789abcdef-0of1.jsonl")

READERS = (
    Reader("images", ("data/images",), f.images, f.read_image, layer=f.PNG),
    Reader("masks", ("data/masks",), f.masks, f.read_masks, layer=f.PNG),
    Reader("mat", ("data/mat", "data/masks"), f.mat_files, at("mask.mat", read_labels, 20)),
    Reader("saliency", ("data/masks",), f.saliency_maps, f.read_saliency, layer=f.PNG, share=2),
    Reader("psa", ("pipelines/wsss/psa",), f.label_scores, at("a.png", read_scores, (5, 7)), layer=f.PNG),
    Reader("instances", ("data/instances",), f.instance_files, at("a.png", read_instances, 20), layer=f.PNG),
    Reader("voc", ("data/labels", "data/voc"), lambda: [{"a.xml": f.VOC}], at("a.xml", read_annotation, CLASSES)),
    Reader("boxes", ("data/imagenet",), f.box_files, at("a.xml", read_box_annotation)),
    Reader("coco", ("data/coco",), f.coco, f.read_all_coco, ("annotations/instances_train2014.json",)),
    Reader("list", ("data/labels", "data/voc"), lambda: f.LINES, at("a.txt", read_list)),
    Reader("cub", ("data/cub",), seeds(write_cub), f.read_both_splits, f.CUB_LISTS),
    Reader("imagenet", ("data/imagenet",), seeds(f.imagenet), f.read_both_imagenets, f.IMAGENET_LISTS),
    Reader("lists", ("data/wsol_metadata",), lambda: [f.LISTS_FILES], lambda d: read_wsol_metadata(d, d, "val")),
    Reader("names", ("networks/load",), lambda: [{"a.txt": b"cat\nred panda\n"}], at("a.txt", read_names)),
    Reader("class_map", ("data/class_names",), lambda: [{"a.json": b'{"cat": [281, 282], "dog": [151]}'}],
           at("a.json", read_class_map, ("cat", "dog"), 1)),
    Reader("npy", ("data/npy", "pickles"), lambda: f.npy(*f.ARRAYS), at("a.npy", read_npy)),
    Reader("table", ("data/labels", "pickles"), lambda: f.npy(f.TABLE), at("a.npy", read_label_table, 3)),
    Reader("dictionary", ("runs/npy_maps", "pickles"), lambda: f.npy(f.IRN, f.PSA), at("a.npy", read_dictionary)),
    Reader("shards", ("data/shards",), lambda: f.SHARDS, f.read_a_shard, layer=f.TAR),
    Reader("submission", ("pipelines/wsss/submission",), f.submission, at("a.tgz", check_submitted), layer=f.TGZ),
    Reader("maps", ("runs/map_store",), seeds(f.maps), f.read_maps, layer=SAFE),
    Reader("weights", ("networks/checkpoint", "tensor_files"), lambda: net({}), f.read_weights, layer=SAFE),
    Reader("torch", ("networks/checkpoint", "networks/torch_file", "pickles"), f.torch_files, f.read_weights,
           layer=f.ZIP),
    Reader("net", ("networks/net_file",), lambda: net(f.NOTES), f.read_net, layer=SAFE),
    Reader("generator", ("networks/generators", "networks/authors"), f.generator,
           lambda d: load_generator("seam", d / "a.safetensors"), layer=SAFE, share=40),
    Reader("checkpoint", ("training/checkpoint",), lambda: [{"checkpoint.pt": checkpoint()}], resume,
           layer=f.ZIP, share=20),
    Reader("log", ("training/log",), lambda: [{"log.jsonl": LOG}], read_logs),
    Reader("records", ("runs/provenance", "pipelines/maps"), seeds(records), read_records, RECORDS),
    Reader("report", REPORTS, seeds(report), read_report, share=4),
    Reader("counts", ("pipelines/evaluate", "pipelines/wsol/evaluate"), seeds(counts), read_counts,
           layer=SAFE, share=4),
    Reader("yaml", ("reading",), lambda: [{"a.yaml": YAML}], read_only_yaml, share=2),
    Reader("config", ("cli/config_options", "cli/parser"), configs, read_options, share=200),
)  # fmt: skip

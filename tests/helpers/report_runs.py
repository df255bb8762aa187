"""Small run folders of every kind, and the parsed pages of their reports."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advcam_attr.cli import main as cli
from advcam_attr.data.cub import read_cub
from advcam_attr.data.masks import write_mask
from advcam_attr.files import write_json
from advcam_attr.pipelines.wsol.evaluate import evaluate_wsol
from advcam_attr.refine.seeds import GridMaps
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.provenance import check_settings
from tiny_voc import write_voc
from tiny_wsol import photograph, write_cub

#: Unsafe names of a file and of a class.
NASTY, WORSE = """<img src=x onerror=alert(1)> "quoted" 'n' & é ☃.png""", "</script><b>bold</b>"
#: An unsafe name without spaces, for lists.
TIGHT = """a<b>&'"é☃"""

#: The true box of each bird by first and last pixels, and the box of each method.
BIRDS = {
    TIGHT: {"truth": (2, 3, 7, 7), "cam": (2, 3, 4, 7), "climb": (1, 3, 7, 7), "advcam": (2, 3, 7, 7)},
    "wren": {"truth": (200, 40, 299, 139), "cam": (200, 40, 299, 139), "climb": (200, 40, 299, 139),
             "advcam": (200, 40, 399, 139)},
}  # fmt: skip
BIRD_SIZES = {TIGHT: (10, 20), "wren": (200, 400)}


class Page(HTMLParser):
    """Tags, texts, gallery data and fetched addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.fetched: list[str] = []
        self.alts: list[str | None] = []
        self.galleries: list[list[dict]] = []
        self._json, self._data = False, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.fetched += [given[name] for name in ("src", "href", "srcset", "data") if name in given]
        self.alts += [given.get("alt")] if tag == "img" else []
        self._json = given.get("type") == "application/json"

    def handle_data(self, data):
        self._data += [data] if self._json else []
        self.texts.append(data)

    def handle_endtag(self, tag):
        if self._json:
            self.galleries.append(json.loads("".join(self._data)))
        self._json, self._data = False, []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report(capsys, folder: Path, *argv: object) -> Page:
    code = cli.main(["report", str(folder), *map(str, argv)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "wrote " in out
    return Page((folder / "report.html").read_text())


def report_error(capsys, folder: Path, *argv: object) -> str:
    code = cli.main(["report", str(folder), *map(str, argv)])
    _, err = capsys.readouterr()
    assert code == 2
    assert err.count("\n") == 1
    return err


def attribution_run(folder: Path) -> Path:
    """Return a folder of ``advcam attribute`` over two images, one of an unsafe name, below the working directory."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in (NASTY, "plain.png"):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / "images" / name)
    (folder / "names.txt").write_text(f"{WORSE}\nchecked, <i>\n'dotted'\nringed\n")
    argv = ["attribute", "images", "--model", "advcam_attr.pipelines.demo:small_net", "--target", "top2"]
    assert cli.main([*argv, "--labels", "names.txt", "--steps", "2", "--set", "stop=none", "--out", "run"]) == 0
    return folder / "run"


def localization_run(folder: Path, subject: str = "cam/seed0", methods: tuple[str, ...] = ("cam", "advcam")) -> Path:
    """Return a run folder of ``advcam wsol`` with unscored maps of two birds, each a bright box."""
    run, root = folder / "run", folder / "CUB_200_2011"
    if not root.is_dir():
        rows = []
        for n, (id, boxes) in enumerate(BIRDS.items(), 1):
            x0, y0, x1, y1 = boxes["truth"]
            rows.append((str(n), f"00{n}.Bird/{id}.jpg", n, 0, f"{x0}.0 {y0}.0 {x1 - x0}.0 {y1 - y0}.0"))
        write_cub(folder, rows)
        photograph(root / "images" / rows[1][1], (400, 200))
        (root / "classes.txt").write_text("1 001.<i>Gull</i>\n2 002.Wren\n")
        write_json(run / "config.json", {"data": {"root": str(root), "kind": "cub", "score": "test"}, "net": None})
    for method in methods:
        out = run / subject / "maps" / method
        digest = check_settings(out / "maps.json", {"method": method})
        store = MapStore(out / "maps", settings=digest)
        for label, (id, boxes) in enumerate(BIRDS.items()):
            heat = torch.full((1, *BIRD_SIZES[id]), -0.5)
            x0, y0, x1, y1 = boxes[method]
            heat[0, y0 : y1 + 1, x0 : x1 + 1] = 1.5
            heat[0, -1, 0] = 1.5  # a smaller component, which has no box
            store.write(id, GridMaps((label,), BIRD_SIZES[id], (heat,)))
        (out / "predictions").mkdir()
        lines = [json.dumps([id, 0]) for id in BIRDS]
        (out / "predictions" / f"{digest}-0of1.jsonl").write_text("\n".join(lines) + "\n")
    return run


def score_boxes(run: Path) -> None:
    """Score a run as ``advcam wsol evaluate`` does."""
    for path in run.glob("*/*/maps/*"):
        evaluate_wsol(path, read_cub(run.parent / "CUB_200_2011", "test"), contours=("all",), search="levels")


def semi_run(folder: Path, kinds: tuple[str, ...] = ("predictions",)) -> Path:
    """Return a run folder of ``advcam semi`` with two label maps: one correct, one all background."""
    root, run = folder / "VOC2012", folder / "run"
    write_voc(root, {"train": {"t": ["cat"]}, "val": {"a": ["dog"], "b": ["cat", "dog"]}}, size=(16, 32))
    write_json(run / "config.json", {"data": {"root": str(root), "val": "val"}, "predict": {}})
    write_json(run / "cct" / "training.json", {"digest": ""})
    right = torch.zeros(16, 32, dtype=torch.uint8)
    right[0] = 12
    for kind in kinds:
        write_mask(run / kind / "val" / "a.png", right)
        write_mask(run / kind / "val" / "b.png", torch.zeros(16, 32, dtype=torch.uint8))
    return run

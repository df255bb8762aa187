"""A CUB-200-2011, an ImageNet and metadata folders of a few small photographs, written by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

#: Number, file, class, split (1 train), x y w h; all photographs are 20 wide and 10 high.
BIRDS = [
    ("1", "001.Gull/gull_a.jpg", 1, 0, "2.0 3.0 5.0 4.0"),
    ("2", "001.Gull/gull_b.jpg", 1, 1, "0.0 0.0 20.0 10.0"),
    ("4", "002.Wren/wren_a.jpg", 2, 1, "6.0 7.0 0.0 0.0"),
    ("5", "002.Wren/wren_b.jpg", 2, 0, "5.0 2.0 30.0 30.0"),
]

#: Lists of two images, of which the second has two boxes.
LISTS = {
    "image_ids": ["002.Wren/7.jpg", "001.Gull/5.jpg"],
    "class_labels": ["001.Gull/5.jpg,0", "002.Wren/7.jpg,1"],
    "image_sizes": ["001.Gull/5.jpg,20,10", "002.Wren/7.jpg,30,12"],
    "localization": ["001.Gull/5.jpg,1,2,3,4", "002.Wren/7.jpg,0,0,29,11", "002.Wren/7.jpg,5,5,5,5"],
}


def photograph(path: Path, size: tuple[int, int] = (20, 10), colour: tuple[int, int, int] = (90, 120, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "JPEG")
    return path


def write_cub(root: Path, birds: Sequence[tuple[str, str, int, int, str]] = BIRDS) -> Path:
    folder = root / "CUB_200_2011"
    for _, file, *_ in birds:
        photograph(folder / "images" / file)
    columns = {
        "images.txt": [f"{n} {file}" for n, file, *_ in birds],
        "image_class_labels.txt": [f"{n} {label}" for n, _, label, *_ in birds],
        "train_test_split.txt": [f"{n} {train}" for n, _, _, train, _ in birds],
        "bounding_boxes.txt": [f"{n} {box}" for n, *_, box in birds],
        "classes.txt": ["1 001.Gull", "2 002.Wren"],
    }
    for name, lines in columns.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def annotation(path: Path, synset: str, boxes: Sequence[Sequence[int]], size: tuple[int, int] = (20, 10)) -> Path:
    objects = "".join(
        f"<object><name>{synset}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for a, b, c, d in boxes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>"
    )
    return path


def write_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> Path:
    """Lists without a newline at their end, as the published ones are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder

"""Inventory of the data sets in a folder: counts by split and class, and problems of the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from advcam_attr.data import coco, cub, imagenet, voc, wsol_metadata
from advcam_attr.data.images import read_rgb, stored_size
from advcam_attr.data.masks import MaskFiles, read_pixel_truth
from advcam_attr.data.samples import LocalizationData, MissingSplitError, SegmentationData, missing_images
from advcam_attr.types import AdvCAMError, Sample

#: More classes than this are summarised.
_MAX_CLASSES = 100

Data = SegmentationData | LocalizationData
Verify = Callable[[Sample], object]

#: Opens a bar of so many images, whose ``update`` counts them.
Progress = Callable[[int], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Problem:
    """A kind of problem: what it is, in the plural; the ids or messages of all cases; and what to do."""

    what: str
    cases: tuple[str, ...]
    fix: str


@dataclass(frozen=True)
class SplitInventory:
    """One split.

    Attributes:
        published: number of images of the published split, if there is one.
        there: ids of the images that are there; None if they were not looked for.
        truth: ids of the images that have a mask or boxes.
    """

    data: Data
    published: int | None
    there: frozenset[str] | None
    truth: frozenset[str]

    def per_class(self) -> list[int]:
        """Return the number of images of each class, K numbers."""
        counts = Counter(k for sample in self.data.samples for k in sample.labels)
        return [counts[k] for k in range(len(self.data.classes))]


@dataclass(frozen=True)
class DataSetInventory:
    """One data set in a folder.

    Attributes:
        splits: those that can be read.
        absent: published parts that are not there, and what they need.
        problems: of the files that are there.
    """

    name: str
    root: Path
    splits: tuple[SplitInventory, ...]
    absent: tuple[str, ...]
    problems: tuple[Problem, ...]

    def text(self) -> str:
        """Return tables of the splits and classes, what is absent, and the problems."""
        head: list[object] = ["split", "listed", "published", "there", "labelled", "masks or boxes"]
        rows, counts = [head], [split.per_class() for split in self.splits]
        for split in self.splits:
            samples, there = split.data.samples, None if split.there is None else len(split.there)
            labelled = sum(bool(sample.labels) for sample in samples)
            rows.append([split.data.split, len(samples), split.published, there, labelled, len(split.truth)])
        names = max((split.data.classes for split in self.splits), key=len, default=())
        classes: list[list[object]] = [["images of", *(split.data.split for split in self.splits)]]
        if len(names) > _MAX_CLASSES:
            classes.append(["classes with images", *(sum(map(bool, count)) for count in counts)])
            classes.append(["fewest of a class", *map(min, counts)])
            classes.append(["most of a class", *map(max, counts)])
        else:
            classes += [[name, *(dict(enumerate(c)).get(k) for c in counts)] for k, name in enumerate(names)]
        problems = [line for problem in self.problems for line in _problem_lines(problem)]
        sections = [
            *([_table(rows), _table(classes)] if self.splits else []),
            *([["not there:", *(f"  {line}" for line in self.absent)]] if self.absent else []),
            ["problems:", *(f"  {line}" for line in problems)] if problems else ["no problems"],
        ]
        body = "\n\n".join("\n".join(f"  {line}" for line in lines) for lines in sections)
        return f"{self.name} in {self.root}\n\n{body}"


@dataclass(frozen=True)
class Inventory:
    root: Path
    data_sets: tuple[DataSetInventory, ...]

    @property
    def sound(self) -> bool:
        return not any(data_set.problems for data_set in self.data_sets)

    def text(self) -> str:
        return "\n\n\n".join(data_set.text() for data_set in self.data_sets)


def check(root: str | Path, *, deep: bool = False, workers: int = 0, progress: Progress | None = None) -> Inventory:
    """Make an inventory of the data sets in a folder and in the folders directly below it.

    They are PASCAL VOC 2012, MS COCO 2014, CUB-200-2011, ImageNet-1K, and the lists of Choe et al., which may also be
    in a folder ``metadata``. Images of ``metadata/CUB`` are looked for in ``dataset/CUB``. Nothing is modified.

    Args:
        root: the folder.
        deep: also decode every image and mask, and compare sizes; takes minutes for a whole data set.
        workers: number of processes that decode; 0 for this one.
        progress: opens a progress bar of so many images; None shows none.
    """
    root = Path(root)
    found = [_inspect("PASCAL VOC 2012", f, voc.SPLITS, voc.read_voc) for f in _folders(root, voc.find_voc)]
    for folder in _folders(root, coco.find_coco):
        coco_splits = {**dict.fromkeys(coco.json_splits(folder)), **coco.SPLITS}
        found.append(_inspect("MS COCO 2014", folder, coco_splits, coco.read_coco))
    cub_splits = {name: published for name, (_, published) in cub.SPLITS.items()}
    found += [_inspect("CUB-200-2011", f, cub_splits, cub.read_cub) for f in _folders(root, cub.find_cub)]
    images = _folders(root, imagenet.find_imagenet)
    found += [_inspect("ImageNet-1K", f, imagenet.SPLITS, imagenet.read_imagenet) for f in images]
    find = wsol_metadata.find_metadata
    found += [_inspect_metadata(folder) for folder in _folders(root, find) or _folders(root / "metadata", find)]
    if not found:
        raise AdvCAMError(
            f"no data set at {root} or directly below: looked for JPEGImages (PASCAL VOC 2012), "
            "annotations/instances_*.json (MS COCO 2014), images.txt (CUB-200-2011), LOC_synset_mapping.txt (ImageNet) "
            "and image_ids.txt (Choe et al.)" + ("" if root.is_dir() else "; there is no such folder")
        )
    if deep:
        found = [replace(f, problems=f.problems + _decode_all(f, workers, progress)) for f in found]
    return Inventory(root, tuple(found))


def _folders(root: Path, find: Callable[[Path], Path]) -> list[Path]:
    places = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    found: dict[Path, Path] = {}
    for place in places:
        try:
            folder = find(place)
        except AdvCAMError:
            continue
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _inspect_metadata(folder: Path) -> DataSetInventory:
    place = folder.absolute()
    images = place.parent.parent / "dataset" / place.name
    numbers = wsol_metadata.PUBLISHED.get(place.name, (None, None, None))
    published = dict(zip(wsol_metadata.SPLITS, numbers, strict=True))
    read = partial(wsol_metadata.read_wsol_metadata, folder, images)
    name = f"Lists of {place.name} (Choe et al.)"
    found = _inspect(name, folder, published, lambda _, split: read(split), look_for=images.is_dir())
    return found if images.is_dir() else replace(found, absent=(*found.absent, f"images: {images}"))


def _inspect(
    name: str,
    root: Path,
    published: dict[str, int] | dict[str, int | None],
    read: Callable[[Path, str], Data],
    look_for: bool = True,
) -> DataSetInventory:
    splits, absent, unusable, missing, unmasked = [], [], [], [], []
    for split, number in published.items():
        try:
            data = read(root, split)
        except MissingSplitError as error:
            absent.append(f"{split}{f' ({number} images)' if number else ''}: {error}")
            continue
        except AdvCAMError as error:
            unusable.append(f"{split}: {error}")
            continue
        ids = [sample.id for sample in data.samples]
        gone = {sample.id for sample in missing_images(data.samples)} if look_for else set()
        missing += sorted(gone)
        truth = frozenset(id for id in ids if _has_truth(data, id))
        splits.append(SplitInventory(data, number, frozenset(ids) - gone if look_for else None, truth))
        if isinstance(data, SegmentationData) and isinstance(data.mask, MaskFiles) and split != "test":
            needed = [folder.name for folder in data.mask.folders if not folder.is_dir()]
            without = [id for id in ids if id not in truth]
            if without and needed:
                absent.append(f"masks of {len(without)} of {len(ids)} images of {split}: {', '.join(needed)}")
            else:
                unmasked += without
    problems = _problems(
        ("splits are unusable", unusable, "correct the files, or unpack them again"),
        ("listed images are missing", missing, "unpack them again"),
        ("listed images have no mask", unmasked, "unpack the masks again"),
    )
    return DataSetInventory(name, root, tuple(splits), tuple(absent), problems)


def _has_truth(data: Data, id: str) -> bool:
    if isinstance(data, LocalizationData):
        return id in data.boxes or id in data.masks
    return data.mask.find(id) is not None if isinstance(data.mask, MaskFiles) else True


def _problems(*found: tuple[str, Iterable[str], str]) -> tuple[Problem, ...]:
    kinds = (Problem(what, tuple(dict.fromkeys(cases)), fix) for what, cases, fix in found)
    return tuple(problem for problem in kinds if problem.cases)


def _decode_all(found: DataSetInventory, workers: int, progress: Progress | None) -> tuple[Problem, ...]:
    files: dict[Path, tuple[Sample, Verify | None]] = {}
    for split in found.splits:
        verify = split.data.mask if isinstance(split.data, SegmentationData) else partial(_verify, split.data)
        for sample in split.data.samples:
            if sample.id in (split.there or ()) and files.get(sample.image, (None, None))[1] is None:
                files[sample.image] = sample, verify if sample.id in split.truth else None
    tasks: Any = list(files.values())
    loader = DataLoader(tasks, batch_size=32, num_workers=workers, collate_fn=_decode)
    results: list[tuple[str, str]] = []
    with nullcontext() if progress is None else progress(len(files)) as bar:
        for batch in loader:
            results += batch
            if bar is not None:
                bar.update(len(batch))
    return _problems(
        ("images are unreadable", (image for image, _ in results if image), "unpack or download them again"),
        ("masks or boxes are unusable", (truth for _, truth in results if truth), "unpack or make them again"),
    )


def _verify(data: LocalizationData, sample: Sample) -> None:
    """Read the masks of a sample; or compare its image's size with the one that its boxes are for."""
    if sample.id in data.masks:
        read_pixel_truth(data.masks[sample.id])
        return
    (height, width), noted = stored_size(sample.image), data.sizes[sample.id]
    if (height, width) != noted:
        raise AdvCAMError(f"{sample.image} has {width}x{height} pixels, and its boxes are for {noted[1]}x{noted[0]}")


def _decode(batch: Sequence[tuple[Sample, Verify | None]]) -> list[tuple[str, str]]:
    return [(_error_of(read_rgb, s.image), "" if verify is None else _error_of(verify, s)) for s, verify in batch]


def _error_of(read: Callable[..., object], argument: object) -> str:
    try:
        read(argument)
    except AdvCAMError as error:
        return str(error)
    return ""


def _problem_lines(problem: Problem) -> list[str]:
    shown, more = problem.cases[:3], len(problem.cases[3:])
    head = f"{len(problem.cases)} {problem.what}; {problem.fix}"
    return [head, *(f"  {case}" for case in shown), *([f"  and {more} more"] if more else [])]


def _table(rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]

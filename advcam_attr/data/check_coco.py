"""The folder of MS COCO 2014 in; what is there and what is wrong with it, out."""

from __future__ import annotations

from pathlib import Path

from advcam_attr.data import coco
from advcam_attr.data.inventory import DataSetInventory, SplitInventory, problems
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.types import AdvCAMError


def inspect_coco(folder: Path) -> DataSetInventory:
    """Take stock of the annotations and names of files of a folder in which ``annotations`` are."""
    present = sorted(file.stem.removeprefix("instances_") for file in (folder / "annotations").glob("instances_*.json"))
    parts: list[tuple[str, str]] = []
    splits: list[SplitInventory] = []
    unusable: list[str] = []
    for name in present:
        try:
            data = coco.read_coco(folder, name, masks=coco.DRAW)
        except AdvCAMError as error:
            unusable.append(str(error))
            continue
        if data.classes != coco.CLASSES:
            unusable.append(f"{coco.find_json(folder, name)} does not have COCO's 80 categories")
            continue
        splits.append(_split(folder, data))
        parts += _parts(data, splits[-1])
    ready = folder / coco.MASKS
    if ready.is_dir():
        parts.append((coco.MASKS, f"{len(list(ready.glob('*.png')))} masks"))
    return DataSetInventory(
        name="MS COCO 2014",
        root=folder,
        classes=coco.CLASSES,
        parts=tuple(parts),
        splits=tuple(splits),
        absent=tuple(
            f"{name} ({published} images): it takes annotations/instances_{name}.json"
            for name, published in coco.SPLITS.items()
            if name not in present
        ),
        problems=problems(
            ("splits that cannot be used", unusable, "mend them"),
            (
                "listed images that are not there",
                (sample.id for split in splits for sample in split.samples if sample.id not in split.there),
                "unpack them anew",
            ),
            (
                "listed images without mask",
                (sample.id for split in splits for sample in split.samples if sample.id not in split.masked),
                f"complete {coco.MASKS}, or have all masks drawn from the annotations",
            ),
        ),
    )


def _split(folder: Path, data: SegmentationData) -> SplitInventory:
    ids = frozenset(sample.id for sample in data.samples)
    ready = coco.CocoMaskFiles((folder / coco.MASKS,), len(data.classes))
    use_ready = ready.folders[0].is_dir()
    return SplitInventory(
        name=data.split,
        published=coco.SPLITS.get(data.split),
        samples=data.samples,
        there=frozenset(sample.id for sample in without_missing(data)[0].samples),
        known=ids,
        masked=frozenset(id for id in ids if ready.find(id)) if use_ready else ids,
        mask=ready if use_ready else data.mask,
    )


def _parts(data: SegmentationData, split: SplitInventory) -> list[tuple[str, str]]:
    parts = [(data.samples[0].image.parent.name, f"{len(split.there)} images")]
    if isinstance(data.mask, coco.CocoMasks):
        crowds = data.mask.instances.crowd
        parts.append((f"annotations/instances_{data.split}.json", f"{len(crowds)} instances, {crowds.sum()} crowds"))
    return parts

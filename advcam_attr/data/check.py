"""A folder in; which data sets lie there, how much of them, and what is wrong with it, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from advcam_attr.data.check_coco import inspect_coco
from advcam_attr.data.check_localization import inspect_cub, inspect_imagenet, inspect_metadata
from advcam_attr.data.check_voc import inspect_voc
from advcam_attr.data.coco import find_coco
from advcam_attr.data.cub import find_cub
from advcam_attr.data.imagenet import find_imagenet
from advcam_attr.data.images import read_rgb
from advcam_attr.data.inventory import DataSetInventory, Inventory, Problem, problems
from advcam_attr.data.voc import find_voc
from advcam_attr.data.wsol_metadata import find_metadata
from advcam_attr.types import AdvCAMError, Sample


def check(root: str | Path, *, deep: bool = False, workers: int = 0, show_progress: bool = False) -> Inventory:
    """Take stock of the data sets at a folder or in the folders within it.

    They are PASCAL VOC 2012, MS COCO 2014, CUB-200-2011, ImageNet-1K, and the lists of Choe et al., which may also lie
    in a folder ``metadata`` within it. Photographs of lists in ``metadata/CUB`` are looked for in ``dataset/CUB``.

    Lists, annotations and names of files are read, and nothing is changed.

    Args:
        root: the folder.
        deep: also open every listed image and its mask, and see that boxes are of the image's size, which takes minutes
            for a whole data set.
        workers: how many processes open them; 0 for this one.
        show_progress: a bar while they are opened.

    Returns:
        Counts and problems; ``.text()`` shows them, ``.sound`` tells whether there are no problems.

    Raises:
        AdvCAMError: there is none of the data sets.

    Example:
        >>> print(check("data").text())  # doctest: +SKIP
        PASCAL VOC 2012 in data/VOCdevkit/VOC2012
        ...
    """
    root = Path(root)
    found = [inspect_voc(folder) for folder in _folders(root, find_voc)]
    found += [inspect_coco(folder) for folder in _folders(root, find_coco)]
    found += [inspect_cub(folder) for folder in _folders(root, find_cub)]
    found += [inspect_imagenet(folder) for folder in _folders(root, find_imagenet)]
    lists = _folders(root, find_metadata) or _folders(root / "metadata", find_metadata)
    found += [inspect_metadata(folder) for folder in lists]
    if not found:
        raise AdvCAMError(
            f"no data set at {root}: looked for PASCAL VOC 2012 (JPEGImages beside ImageSets, Annotations or "
            "SegmentationClass), MS COCO 2014 (annotations/instances_*.json), CUB-200-2011 (images.txt beside "
            "train_test_split.txt), ImageNet (LOC_synset_mapping.txt, or train or val with folders named by "
            "synsets) and lists of Choe et al. (image_ids.txt in train, val or test), in it or in the folders within it"
            + ("" if root.is_dir() else "; there is no such folder")
        )
    if deep:
        found = [replace(f, problems=f.problems + _open_all(f, workers, show_progress)) for f in found]
    return Inventory(root, tuple(found))


def _folders(root: Path, find: Callable[[Path], Path]) -> list[Path]:
    """Where a data set is, at the root or one folder below it; each place once."""
    places = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    found: dict[Path, Path] = {}
    for place in places:
        try:
            folder = find(place)
        except AdvCAMError:
            continue
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _open_all(found: DataSetInventory, workers: int, show_progress: bool) -> tuple[Problem, ...]:
    """Open every image that is there, and its mask if it has one, once."""
    files: dict[Path, tuple[Sample, Callable[[Sample], object] | None]] = {}
    for split in found.splits:
        for sample in split.samples:
            if sample.id in split.there and files.get(sample.image, (None, None))[1] is None:
                files[sample.image] = sample, split.mask if sample.id in split.masked else None
    loader = DataLoader(_Opening(list(files.values())), batch_size=32, num_workers=workers, collate_fn=list)
    images: list[str] = []
    masks: list[str] = []
    with tqdm(total=len(files), desc="Opening", unit="image", disable=None if show_progress else True) as bar:
        for batch in loader:
            images += [image for image, _ in batch if image]
            masks += [mask for _, mask in batch if mask]
            bar.update(len(batch))
    return problems(
        ("images that cannot be read", images, "unpack or download them anew"),
        (f"{found.truth} that cannot be used", masks, "unpack or make them anew"),
    )


class _Opening(Dataset[tuple[str | None, str | None]]):
    """What is wrong with an image, and with its mask."""

    def __init__(self, files: Sequence[tuple[Sample, Callable[[Sample], object] | None]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str | None, str | None]:
        sample, mask = self.files[index]
        return _complaint(read_rgb, sample.image), _complaint(mask, sample) if mask else None


def _complaint(read: Callable[..., object], argument: object) -> str | None:
    try:
        read(argument)
    except AdvCAMError as error:
        return str(error)
    return None

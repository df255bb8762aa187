"""Archives for PASCAL VOC's test server.

The server takes ``results/VOC2012/Segmentation/comp6_test_cls/<id>.png`` in a ``.tgz``: 8-bit palette PNGs with VOC's
colours and the images' sizes, one of each image of the test list, labels 0 to 20 only. ``comp5`` is for nets trained on
VOC's data alone; ``comp6``, with ImageNet's weights, is what the paper's nets are.
"""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from advcam_attr.data.images import image_size, is_image, open_image
from advcam_attr.data.labels import few, read_list
from advcam_attr.data.masks import mask_path, palette
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.voc import CLASSES, SPLITS
from advcam_attr.files import replacing
from advcam_attr.types import AdvCAMError, NoMaskError, Sample

logger = logging.getLogger(__name__)

Competition = Literal["comp5", "comp6"]

#: A label map of VOC has a few thousand bytes, and all of them less than 10 MB; larger files are not read.
_LARGEST, _LARGEST_TAR = 1 << 22, 1 << 28


def submission_folder(competition: Competition = "comp6", split: str = "test") -> str:
    """Return the folder of the label maps in an archive."""
    if competition not in get_args(Competition):
        raise AdvCAMError(f"the server's competitions for segmentation are comp5 and comp6, not {competition!r}")
    return f"results/VOC2012/Segmentation/{competition}_{split}_cls"


def write_submission(predictions: Path, data: SegmentationData, path: Path, competition: Competition = "comp6") -> Path:
    """Pack the predictions ``<id>.png`` of a split into ``path``, a ``.tgz``; equal predictions give equal archives.

    Args:
        data: the images, VOC's ``test``.
        competition: ``"comp6"``, or ``"comp5"`` where VOC's own data is all that was trained on.

    Raises:
        AdvCAMError: Predictions are missing or invalid.
    """
    folder = submission_folder(competition, data.split)
    missing = [s.id for s in data.samples if not mask_path(predictions, s.id).is_file()]
    if missing or not data.samples:
        raise AdvCAMError(
            f"predictions of {len(missing)} of {len(data.samples)} images are missing in {predictions}, e.g. of "
            f"{few(missing) or data.split}; make them first"
        )
    with replacing(path) as temporary, temporary.open("wb") as file:
        packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0)
        with packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in sorted(data.samples, key=lambda s: s.id):
                source = mask_path(predictions, sample.id)
                content = source.read_bytes()
                if problem := _label_map_problem(content, sample):
                    raise AdvCAMError(f"{source} {problem}")
                member = tarfile.TarInfo(f"{folder}/{sample.id}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def check_submission(path: Path, data: SegmentationData, limit: int = 10) -> list[str]:
    """Return the problems of an archive, one line each; none if the test server takes it. Nothing is unpacked to disk.

    Args:
        data: the images that it must hold; sizes are compared for images that exist.
        limit: number of problems after which checking stops.

    Raises:
        AdvCAMError: The file is missing, or no gzipped tar.
    """
    with _opened(path) as (tar, archive):
        problems = list(islice(_problems(tar, archive, data), limit + 1))
    return problems if len(problems) <= limit else [*problems[:limit], "... and more"]


def submit(
    predictions: Path,
    path: Path,
    ids_file: Path | None = None,
    images: Path | None = None,
    competition: Competition = "comp6",
) -> Path:
    """Pack the label maps ``<id>.png`` of a folder.

    Args:
        ids_file: list of the images; None takes all label maps of the folder.
        images: folder of the images, whose sizes are compared; None for none.
    """
    ids = [] if ids_file is not None else sorted(file.stem for file in predictions.glob("[!.]*.png"))
    if ids_file is None and not ids:
        raise AdvCAMError(f"no label maps (ID.png) in {predictions}: give the folder of predictions")
    data = _images(ids_file, images, ids)
    write_submission(predictions, data, path, competition)
    logger.info(f"wrote {path}: {len(data.samples)} label maps in {submission_folder(competition, data.split)}")
    return path


def check_submitted(path: Path, ids_file: Path | None = None, images: Path | None = None) -> list[str]:
    """Return the problems of an archive, see `check_submission`.

    Args:
        ids_file: list of the images; None takes those of the archive, which must be as many as VOC's test images.
        images: folder of the images, whose sizes are compared; None for none.
    """
    if ids_file is not None:
        return check_submission(path, _images(ids_file, images, []))
    with _opened(path) as (_, archive):
        names = [PurePosixPath(member.name) for member in _members(archive) if member.isreg()]
    ids = dict.fromkeys(name.stem for name in names if name.suffix == ".png" and not name.name.startswith("."))
    problems = check_submission(path, _images(None, images, list(ids)))
    if len(ids) != SPLITS["test"]:
        problems.append(
            f"it has {len(ids)} label maps, but VOC's test split {SPLITS['test']} images; --list names others"
        )
    return problems


def _images(ids_file: Path | None, images: Path | None, ids: Sequence[str]) -> SegmentationData:
    if images is not None and not images.is_dir():
        raise AdvCAMError(f"no such folder of images: {images}")
    folder = Path() if images is None else images
    split = ids_file.stem if ids_file is not None and ids_file.stem in SPLITS else "test"
    ids = ids if ids_file is None else read_list(ids_file).ids
    existing = {} if images is None else {path.stem: path for path in images.iterdir() if is_image(path)}
    samples = tuple(Sample(id, existing.get(id, folder / f"{id} has no image"), ()) for id in ids)
    return SegmentationData("voc", folder, split, CLASSES, samples, _no_mask)


def _no_mask(sample: Sample) -> Tensor:
    raise NoMaskError(f"{sample.id} has no true mask")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[bytes, tarfile.TarFile]]:
    """Open a gzipped tar, whose checksum is verified; also return its bytes."""
    if not path.is_file():
        raise AdvCAMError(f"no such archive: {path}")
    try:
        with gzip.open(path) as packed:
            tar = packed.read(_LARGEST_TAR + 1)
        if len(tar) > _LARGEST_TAR:
            raise tarfile.TarError(f"more than {_LARGEST_TAR} bytes unpacked")
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            yield tar, archive
    except AdvCAMError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, tarfile.TarError) as error:
        raise AdvCAMError(f"{path} is no gzipped tar archive, or damaged ({error}); pack it again") from error


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        if member.size < 0 or member.issparse():
            raise tarfile.TarError(f"{member.name!r} is sparse, or of a negative length")
        yield member


def _problems(tar: bytes, archive: tarfile.TarFile, data: SegmentationData) -> Iterator[str]:
    samples = {sample.id: sample for sample in data.samples}
    folders = [PurePosixPath(submission_folder(competition, data.split)) for competition in get_args(Competition)]
    parents = {parent for folder in folders for parent in (folder, *folder.parents)}
    used: dict[PurePosixPath, None] = {}
    seen: set[str] = set()
    for member in _members(archive):
        name, shown = PurePosixPath(member.name), repr(member.name[:120])
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            yield f"{shown} is not a path within the archive"
        elif member.isdir():
            if name not in parents:
                yield f"folder {shown} does not belong there: label maps are in {folders[1]}"
        elif not member.isreg():
            yield f"{shown} is a link or a device, not a file"
        elif name.parent not in folders or name.suffix != ".png":
            yield f"{shown} does not belong there: it is no PNG in {folders[1]}"
        elif name.stem not in samples:
            yield f"{shown} is of no image of the list {data.split}"
        elif name.stem in seen:
            yield f"{shown} is there twice"
        else:
            seen.add(name.stem)
            used.setdefault(name.parent)
            if problem := _member_problem(archive, member, samples[name.stem]):
                yield f"{shown} {problem}"
    if len(used) > 1:
        yield f"label maps are in several folders: {' and '.join(map(str, used))}; the server takes one"
    missing = [id for id in samples if id not in seen]
    if missing:
        yield f"{len(missing)} of {len(samples)} images are missing, e.g. {few(missing)}"
    if not tar.endswith(bytes(2 * tarfile.BLOCKSIZE)):
        yield "the tar has no end, or something follows it; pack it again"


def _member_problem(archive: tarfile.TarFile, member: tarfile.TarInfo, sample: Sample) -> str | None:
    if member.size > _LARGEST:
        return f"has {member.size} bytes, far more than a label map"
    file = archive.extractfile(member)
    return "cannot be read" if file is None else _label_map_problem(file.read(), sample)


def _label_map_problem(content: bytes, sample: Sample) -> str | None:
    """Return what is wrong with a label map's file, or None; sizes are compared if the image exists."""
    size = image_size(sample.image) if sample.image.is_file() else None
    try:
        with open_image(io.BytesIO(content), formats=("PNG",)) as image:
            depth = content[24] if len(content) > 24 else 0
            if image.mode != "P" or depth != 8:
                return f"is a PNG of mode {image.mode} and {depth} bits; the server takes palette PNGs of 8 bits"
            if size is not None and image.size[::-1] != size:
                return f"is of {image.width}x{image.height} pixels and its image of {size[1]}x{size[0]}"
            labels, colours = np.array(image), np.reshape(image.getpalette() or [], (-1, 3))
    except AdvCAMError:
        return "is no PNG that can be read"
    if wrong := sorted(set(np.unique(labels).tolist()) - set(range(len(CLASSES) + 1))):
        return f"holds the labels {few(wrong, 5)}; the server takes 0 to {len(CLASSES)} only"
    own = palette()[: int(labels.max()) + 1]
    return None if np.array_equal(colours[: len(own)], own) else "has other colours than VOC's palette"

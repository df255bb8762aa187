"""A folder of predictions in; the archive that PASCAL VOC's test server takes, and what is wrong with one, out.

The server takes ``results/VOC2012/Segmentation/comp6_test_cls/<id>.png`` in a ``.tgz``: 8-bit palette PNGs with VOC's
colours, of the photographs' sizes, one of each image of the test list, labels 0 to 20 only. ``comp5`` is for nets that
saw VOC's data alone; ``comp6``, with ImageNet's weights, is what the paper's nets are.
"""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
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

#: A label map of VOC has a few thousand bytes; what is far larger is none, and is not read.
_LARGEST = 1 << 22


def submission_folder(competition: Competition = "comp6", split: str = "test") -> str:
    """Where label maps are in an archive.

    Example:
        >>> submission_folder()
        'results/VOC2012/Segmentation/comp6_test_cls'
    """
    if competition not in get_args(Competition):
        raise AdvCAMError(f"the server's competitions for segmentation are comp5 and comp6, not {competition!r}")
    return f"results/VOC2012/Segmentation/{competition}_{split}_cls"


def write_submission(predictions: Path, data: SegmentationData, path: Path, competition: Competition = "comp6") -> Path:
    """Pack the predictions of a split for the test server; equal predictions make equal archives.

    Args:
        predictions: a folder of ``<id>.png``, see `advcam_attr.pipelines.wsss.segment.predict`.
        data: the images whose predictions are packed, VOC's ``test``.
        path: ends in ``.tgz`` or ``.tar.gz``; written whole or not at all.
        competition: ``"comp6"``, or ``"comp5"`` where VOC's own data is all that was trained on.

    Returns:
        The path.

    Raises:
        AdvCAMError: predictions are missing or are not what the server takes, or the file cannot be written.

    Example:
        >>> write_submission(Path("run/predictions/test_crf"), test, Path("results.tgz"))  # doctest: +SKIP
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
                if problem := _problem_of(content, _size_of(sample)):
                    raise AdvCAMError(f"{source} {problem}")
                member = tarfile.TarInfo(f"{folder}/{sample.id}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def check_submission(path: Path, data: SegmentationData, limit: int = 10) -> list[str]:
    """What is wrong with an archive, one line each; none where the test server takes it.

    Nothing is unpacked to disk, and nothing of unusual size is read.

    Args:
        path: the archive.
        data: the images that it shall hold; sizes are compared where photographs are there.
        limit: how many problems are told at most; a last line says that there are more.

    Raises:
        AdvCAMError: the file is not there, or no gzipped tar.

    Example:
        >>> check_submission(Path("results.tgz"), read_voc("VOCdevkit", "test"))  # doctest: +SKIP
        []
    """
    problems: list[str] = []
    with _opened(path) as archive:
        for problem in chain(_problems(archive, data), _damage(path)):
            if len(problems) == limit:
                return [*problems, "... and more"]
            problems.append(problem)
    return problems


def submit(
    predictions: Path,
    path: Path,
    listed: Path | None = None,
    images: Path | None = None,
    competition: Competition = "comp6",
) -> Path:
    """Pack the label maps of a folder, given a list of their images or none, and check the archive.

    Args:
        predictions: the folder of ``<id>.png``.
        path: of the archive.
        listed: the list of the images; None takes all label maps of the folder.
        images: the folder of the photographs; None compares no sizes.
        competition: see `write_submission`.

    Raises:
        AdvCAMError: as `write_submission`, or there are no label maps.
    """
    ids = [] if listed is not None else sorted(file.stem for file in predictions.glob("[!.]*.png"))
    if listed is None and not ids:
        raise AdvCAMError(f"no label maps (ID.png) in {predictions}: give the folder of predictions")
    data = _images(listed, images, ids)
    write_submission(predictions, data, path, competition)
    logger.info(f"wrote {path}: {len(data.samples)} label maps in {submission_folder(competition, data.split)}")
    return path


def check_submitted(path: Path, listed: Path | None = None, images: Path | None = None) -> list[str]:
    """What is wrong with an archive, given a list of its images or none; see `check_submission`.

    Args:
        path: the archive.
        listed: the list of the images; None takes those that the archive has, which must be as many as VOC's test
            images are.
        images: the folder of the photographs; None compares no sizes.

    Raises:
        AdvCAMError: the archive or the list cannot be read.
    """
    if listed is not None:
        return check_submission(path, _images(listed, images, []))
    with _opened(path) as archive:
        names = [PurePosixPath(member.name) for member in archive if member.isreg()]
    ids = dict.fromkeys(name.stem for name in names if name.suffix == ".png" and not name.name.startswith("."))
    problems = check_submission(path, _images(None, images, list(ids)))
    if len(ids) != SPLITS["test"]:
        problems.append(
            f"it has {len(ids)} label maps, and VOC's test split {SPLITS['test']} images; --list names others"
        )
    return problems


def _images(listed: Path | None, images: Path | None, ids: Sequence[str]) -> SegmentationData:
    """Images of a list, or of these ids, and their photographs in a folder, or none."""
    if images is not None and not images.is_dir():
        raise AdvCAMError(f"no such folder of photographs: {images}")
    folder = Path() if images is None else images
    split = listed.stem if listed is not None and listed.stem in SPLITS else "test"
    ids = ids if listed is None else read_list(listed).ids
    known = {} if images is None else {path.stem: path for path in images.iterdir() if is_image(path)}
    samples = tuple(Sample(id, known.get(id, folder / f"{id} has no photograph"), ()) for id in ids)
    return SegmentationData("voc", folder, split, CLASSES, samples, _no_mask)


def _no_mask(sample: Sample) -> Tensor:
    raise NoMaskError(f"{sample.id} has no true mask")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    if not path.is_file():
        raise AdvCAMError(f"no such archive: {path}")
    try:
        with tarfile.open(path, "r|gz") as archive:
            yield archive
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise AdvCAMError(f"{path} is no gzipped tar archive, or damaged ({error}); pack it anew") from error


def _problems(archive: tarfile.TarFile, data: SegmentationData) -> Iterator[str]:
    samples: Mapping[str, Sample] = {sample.id: sample for sample in data.samples}
    folders = {competition: submission_folder(competition, data.split) for competition in get_args(Competition)}
    above = {
        str(parent) for folder in folders.values() for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)
    }
    used: dict[str, None] = {}
    seen: set[str] = set()
    for member in archive:
        name = PurePosixPath(member.name)
        shown = repr(member.name[:120])
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            yield f"{shown} is not a path within the archive"
        elif member.isdir():
            if str(name) not in above:
                yield f"folder {shown} does not belong there: label maps are in {folders['comp6']}"
        elif not member.isreg():
            yield f"{shown} is a link or a device, not a file"
        elif str(name.parent) not in folders.values() or name.suffix != ".png":
            yield f"{shown} does not belong there: it is no PNG in {folders['comp6']}"
        elif name.stem not in samples:
            yield f"{shown} is of no image of the list {data.split}"
        elif name.stem in seen:
            yield f"{shown} comes twice"
        else:
            seen.add(name.stem)
            used.setdefault(str(name.parent))
            if problem := _problem_of_member(archive, member, samples[name.stem]):
                yield f"{shown} {problem}"
    if len(used) > 1:
        yield f"label maps are in several folders: {' and '.join(used)}; the server takes one"
    missing = [id for id in samples if id not in seen]
    if missing:
        yield f"{len(missing)} of {len(samples)} images are missing, e.g. {few(missing)}"


def _damage(path: Path) -> Iterator[str]:
    """What is wrong behind the last file: a reader of tar stops there, and sees neither checksum nor missing end."""
    tail = b""
    try:
        with gzip.open(path) as packed:
            while chunk := packed.read(1 << 20):
                tail = (tail + chunk)[-2 * tarfile.BLOCKSIZE :]
    except (OSError, EOFError, zlib.error) as error:
        yield f"the gzip stream is cut off, damaged, or followed by something else ({error}); pack it anew"
        return
    if tail != bytes(2 * tarfile.BLOCKSIZE):
        yield "the tar has no end, or something follows it; pack it anew"


def _problem_of_member(archive: tarfile.TarFile, member: tarfile.TarInfo, sample: Sample) -> str | None:
    if member.size > _LARGEST:
        return f"has {member.size} bytes, far more than a label map"
    file = archive.extractfile(member)
    return "cannot be read" if file is None else _problem_of(file.read(), _size_of(sample))


def _size_of(sample: Sample) -> tuple[int, int] | None:
    return image_size(sample.image) if sample.image.is_file() else None


def _problem_of(content: bytes, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a label map's file, or None."""
    try:
        with open_image(io.BytesIO(content), formats=("PNG",)) as image:
            depth = content[24] if len(content) > 24 else 0
            if image.mode != "P" or depth != 8:
                return f"is a PNG of mode {image.mode} and {depth} bits; the server takes palette PNGs of 8 bits"
            if size is not None and image.size[::-1] != size:
                return f"is of {image.width}x{image.height} pixels and its photograph of {size[1]}x{size[0]}"
            labels, colours = np.array(image), np.reshape(image.getpalette() or [], (-1, 3))
    except AdvCAMError:
        return "is no PNG that can be read"
    if strange := sorted(set(np.unique(labels).tolist()) - set(range(len(CLASSES) + 1))):
        return f"holds {_listed(strange)}; the server takes the labels 0 to {len(CLASSES)} only"
    own = palette()[: int(labels.max()) + 1]
    return None if np.array_equal(colours[: len(own)], own) else "has other colours than VOC's palette"


def _listed(labels: Sequence[int]) -> str:
    return f"the label{'s' * (len(labels) > 1)} {few(labels, 5)}"

"""WebDataset's tar files of images and labels in; where in them each image lies, and images by number, out.

A shard is a plain tar file: files of one name and several endings (``000012.jpg``, ``000012.cls``) are one sample. The
headers are read once; then any image can be read alone. So order, augmentation, and how a training resumes are the same
as with a folder of images, and no library is needed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from advcam_attr.data.images import decode_stored_rgb, is_image
from advcam_attr.data.labels import few
from advcam_attr.types import AdvCAMError

#: The ending of the file that holds a sample's class: a number, 0-based.
_LABEL = "cls"


@dataclass(frozen=True, eq=False)
class ShardData:
    """The images of some shards, each of one class.

    Attributes:
        name: of the data set, e.g. ``"imagenet"``.
        split: of it.
        classes: K names.
        files: the shards, sorted.
        shard: of each image, its place among the files, ``(N,)`` int32.
        span: of each image, where it begins in its shard and how many bytes it has, ``(N, 2)`` int64.
        labels: of each image, ``(N,)`` int32.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    shard: np.ndarray
    span: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """An image as an RGB picture.

        Raises:
            AdvCAMError: the shard is not there any more, or the image is damaged.
        """
        file, (start, count) = self.files[self.shard[index]], self.span[index]
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                content = stream.read(count)
        except OSError as error:
            raise AdvCAMError(f"cannot read shard {file}: {error.strerror}") from error
        return decode_stored_rgb(content, f"{index} of the images, at byte {start} of {file}")


def read_shards(
    root: str | Path, pattern: str = "*.tar", *, classes: Sequence[str] | int = 1000, name: str = "imagenet",
    split: str = "train",
) -> ShardData:  # fmt: skip
    """Read the headers of WebDataset's shards, about a minute for a million images.

    Args:
        root: the folder of the shards, or one shard.
        pattern: of the shards' names, e.g. ``"imagenet-train-*.tar"``.
        classes: K names, or K.
        name, split: what to call the data.

    Raises:
        AdvCAMError: there is no shard, one is damaged or compressed, or a sample has not one image and one class.

    Example:
        >>> data = read_shards("shards", "imagenet-train-*.tar")  # doctest: +SKIP
        >>> len(data)  # doctest: +SKIP
        1281167
    """
    root = Path(root)
    files = (root,) if root.is_file() else tuple(sorted(root.glob(pattern)))
    if not files:
        raise AdvCAMError(f"no shards at {root}: looked for {pattern}")
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    shard: list[int] = []
    span: list[tuple[int, int]] = []
    labels: list[int] = []
    for place, file in enumerate(files):
        for start, count, label in _samples(file, len(names)):
            shard.append(place)
            span.append((start, count))
            labels.append(label)
    return ShardData(
        name, split, names, files, np.array(shard, np.int32), np.array(span, np.int64), np.array(labels, np.int32)
    )


def _samples(file: Path, num_classes: int) -> Iterable[tuple[int, int, int]]:
    """Where each image begins, its length, and its class."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    keys: dict[str, None] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, _, ending = last.partition(".")
                key = f"{folder}/{stem}"
                keys.setdefault(key)
                if is_image(Path(f"image.{ending.lower()}")):
                    images[key] = member.offset_data, member.size
                elif ending == _LABEL:
                    text = tar.extractfile(member)
                    labels[key] = int(text.read()) if text else -1
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        raise AdvCAMError(f"cannot read shard {file} ({error}); it should be a tar file, not compressed") from error
    for what, there in (("an image", images), ("a class (.cls)", labels)):
        missing = [key for key in keys if key not in there]
        if missing:
            raise AdvCAMError(f"{file}: {len(missing)} of {len(keys)} samples have not {what} ({few(missing)})")
    strangers = {label for label in labels.values() if not 0 <= label < num_classes}
    if strangers:
        raise AdvCAMError(f"{file} has the classes {few(sorted(strangers))}, but there are {num_classes}, from 0 on")
    if not keys:
        raise AdvCAMError(f"{file} holds no samples")
    return [(*images[key], labels[key]) for key in keys]

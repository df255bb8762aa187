"""WebDataset shards: images by index within tar files of images and class numbers.

Files of one name and several endings (``000012.jpg``, ``000012.cls``) are one sample. Headers are read once; then each
image is read alone, so that order, augmentation and exact resume are the same as with a folder of images.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from advcam_attr.data.images import decode_stored_rgb, is_image
from advcam_attr.data.labels import few
from advcam_attr.types import AdvCAMError

#: The ending of the file that holds a sample's class: a number, 0-based.
_LABEL = "cls"

#: Largest header and largest class file in bytes.
_MAX_READ = 1 << 16


@dataclass(frozen=True, eq=False)
class ShardData:
    """The images of some shards, each of one class.

    Attributes:
        files: the shards, sorted.
        shard: index of each image's file, ``(N,)`` int32.
        span: offset and length of each image in its shard, ``(N, 2)`` int64.
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
        file, (start, count) = self.files[self.shard[index]], self.span[index]
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                content = stream.read(count)
        except OSError as error:
            raise AdvCAMError(f"cannot read shard {file}: {error.strerror}") from error
        return decode_stored_rgb(content, f"{index} of the images, at byte {start} of {file}")


def read_shards(
    root: str | Path,
    pattern: str = "*.tar",
    *,
    classes: Sequence[str] | int = 1000,
    name: str = "imagenet",
    split: str = "train",
) -> ShardData:
    """Index WebDataset shards by reading their headers, about a minute for a million images.

    Args:
        root: the folder of the shards, or one shard.
        pattern: of the shards' names, e.g. ``"imagenet-train-*.tar"``.
        classes: K names, or K.
        name, split: of the data.

    Raises:
        AdvCAMError: there is no shard, one is damaged or compressed, or a sample does not have one image and one class.
    """
    root = Path(root)
    files = (root,) if root.is_file() else tuple(sorted(root.glob(pattern)))
    if not files:
        raise AdvCAMError(f"no shards at {root}: looked for {pattern}")
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    rows = [(place, *sample) for place, file in enumerate(files) for sample in _samples(file, len(names))]
    table = np.array(rows, np.int64)
    return ShardData(
        name, split, names, files, table[:, 0].astype(np.int32), table[:, 1:3], table[:, 3].astype(np.int32)
    )


class _Bounded(io.FileIO):
    """A file of which tarfile cannot read more at once than a header may hold."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise OSError(f"a header or class file of more than {_MAX_READ} bytes")
        return super().read(size)


def _samples(file: Path, num_classes: int) -> list[tuple[int, int, int]]:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    keys: dict[str, None] = {}
    try:
        total = file.stat().st_size
        with _Bounded(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.TarError(f"{member.name} has a negative length")
                if not member.isreg():
                    continue
                if member.issparse() or member.offset_data + member.size > total:
                    raise tarfile.TarError(f"{member.name} is sparse, or longer than the shard")
                folder, _, last = member.name.rpartition("/")
                stem, _, ending = last.partition(".")
                key = f"{folder}/{stem}"
                keys.setdefault(key)
                if is_image(Path(f"image.{ending.lower()}")):
                    images[key] = member.offset_data, member.size
                elif ending == _LABEL:
                    stream.seek(member.offset_data)
                    labels[key] = int(stream.read(member.size))
    except (OSError, tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise AdvCAMError(f"cannot read shard {file} ({error}); it should be a tar file, not compressed") from error
    for what, there in (("image", images), ("class (.cls)", labels)):
        missing = [key for key in keys if key not in there]
        if missing:
            raise AdvCAMError(f"{file}: {len(missing)} of {len(keys)} samples have no {what} ({few(missing)})")
    unknown = {label for label in labels.values() if not 0 <= label < num_classes}
    if unknown:
        raise AdvCAMError(f"{file} has the classes {few(sorted(unknown))}, but there are {num_classes}, from 0 on")
    if not keys:
        raise AdvCAMError(f"{file} holds no samples")
    return [(*images[key], labels[key]) for key in keys]

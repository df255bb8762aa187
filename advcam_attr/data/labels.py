"""Annotations (the XML of VOC, or the ``cls_labels.npy`` of others' codebases) in; the classes of an image out."""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn
from xml.parsers import expat

import numpy as np
import torch
from torch import Tensor

from advcam_attr.data.images import EXTENSIONS
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError


def read_annotation(path: str | Path, classes: Sequence[str]) -> tuple[int, ...]:
    """The classes of all objects of a PASCAL VOC annotation, the difficult ones included.

    Difficult objects count, as they do in the ``cls_labels.npy`` of IRN and PSA; parts of persons (heads, hands, feet)
    are no objects. Files that define entities are refused before anything of theirs is expanded.

    Args:
        path: ``Annotations/<id>.xml``.
        classes: the names of the classes.

    Returns:
        Indices into ``classes``, ascending, each once; empty if there is no object.

    Raises:
        AdvCAMError: the file is missing or damaged, or names an object that is none of the classes.
    """
    path = Path(path)
    names = [text for tags, text in read_elements(path) if tags == ("annotation", "object", "name")]
    for name in names:
        if name not in classes:
            raise AdvCAMError(f"annotation {path} names an object {name!r}, which is no class{nearest(name, classes)}")
    return tuple(sorted({classes.index(name) for name in names}))


def read_label_table(
    path: str | Path, num_classes: int, key: Callable[[int | str], str] = str
) -> dict[str, tuple[int, ...]]:
    """The labels of a ``cls_labels.npy``: a dict from ids to 0/1 vectors ``(K,)``.

    Args:
        path: as IRN, AdvCAM, PSA, SEAM, RIB write it; nothing in it is run.
        num_classes: K.
        key: brings the file's ids (integers or strings) to the form in which they are looked up.

    Returns:
        Class indices, ascending, by id.

    Raises:
        AdvCAMError: the file cannot be read, is no such dict, or a vector is not one of K zeros and ones.

    Example:
        >>> read_label_table("cls_labels.npy", 20, voc_id)["2007_000032"]  # doctest: +SKIP
        (0, 14)
    """
    table = read_npy(path)
    if not isinstance(table, Mapping) or not table:
        raise AdvCAMError(f"{path} is no table of labels: it should hold a dict from image ids to 0/1 vectors")
    labels: dict[str, tuple[int, ...]] = {}
    for name, vector in table.items():
        array = np.asarray(vector)
        if array.shape != (num_classes,) or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise AdvCAMError(
                f"{path}: the labels of {name} are of shape {array.shape} and type {array.dtype}, "
                f"where {num_classes} zeros and ones were expected; is it of another data set?"
            )
        labels[key(name if isinstance(name, str) else int(name))] = tuple(np.flatnonzero(array).tolist())
    return labels


def look_up(table: Mapping[str, tuple[int, ...]], keys: Sequence[str], path: str | Path) -> list[tuple[int, ...]]:
    """The labels of all keys.

    Raises:
        AdvCAMError: some are not in the table.
    """
    missing = [key for key in keys if key not in table]
    if missing:
        raise AdvCAMError(f"{path} has no labels for {len(missing)} of {len(keys)} images ({few(missing)})")
    return [table[key] for key in keys]


def voc_id(key: int | str) -> str:
    """A VOC id from its form in a label table; IRN stores them as integers.

    Example:
        >>> voc_id(2007000032), voc_id("2007_000032")
        ('2007_000032', '2007_000032')
    """
    return key if isinstance(key, str) else f"{key // 1_000_000}_{key % 1_000_000:06d}"


def coco_key(key: int | str) -> str:
    """A COCO image's number, however it is written; the number of padding zeros differs between codebases.

    Example:
        >>> coco_key(9), coco_key("000000000009"), coco_key("COCO_train2014_000000000009")
        ('9', '9', '9')
    """
    digits = re.search(r"\d+$", str(key))
    return str(int(digits[0])) if digits else str(key)


_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class IdList:
    """What a list file names.

    Attributes:
        ids: in order, each once.
        mask_folders: the folders of the masks that its lines name, in order of appearance; mostly empty.
    """

    ids: tuple[str, ...]
    mask_folders: tuple[str, ...]


def read_list(path: str | Path) -> IdList:
    """Read a list of images, one a line.

    A line is an id (IRN, VOC), or an image's path and, it may be, its mask's
    (``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``: PSA, SEAM, DeepLab, CCT).

    Raises:
        AdvCAMError: the file is missing or empty, a line is none of these, or an id comes twice.

    Example:
        >>> read_list("ImageSets/Segmentation/train.txt").ids[:2]  # doctest: +SKIP
        ('2007_000032', '2007_000039')
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such list of images: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AdvCAMError(f"cannot read the list of images {path}: it must be a text file") from error
    first_line: dict[str, int] = {}
    folders: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, *mask = line.split()
        if not _ID.fullmatch(stem(image)) or len(mask) > 1 or (mask and stem(mask[0]) != stem(image)):
            raise AdvCAMError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not an id, nor an image's path and its mask's"
            )
        if stem(image) in first_line:
            raise AdvCAMError(
                f"{path} names {stem(image)} twice, in lines {first_line[stem(image)]} and {number}; remove one"
            )
        first_line[stem(image)] = number
        folders.update((PurePosixPath(m).parent.name, None) for m in mask)
    if not first_line:
        raise AdvCAMError(f"the list of images {path} is empty; it should name one image a line")
    return IdList(tuple(first_line), tuple(folder for folder in folders if folder))


def stem(name: str) -> str:
    """An id, or the id of a path to an image."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def few(names: Iterable[object], limit: int = 3) -> str:
    """The first of some names, for a message."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def read_npy(path: str | Path) -> Any:
    """Read an ``.npy`` file.

    Args:
        path: of numbers or strings; or of objects, by any NumPy from 1.7 on, made of dicts, lists, tuples, numbers,
            strings, bytes, NumPy's arrays and scalars, and torch's tensors.

    Returns:
        An array; what a 0-dimensional object array holds comes as it is (``np.save`` puts dicts into one).

    Raises:
        AdvCAMError: the file is missing, damaged, or asks for anything else than the above.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "labels.npy"
        >>> np.save(file, {"2007_000032": np.ones(2, np.float32)})
        >>> read_npy(file)
        {'2007_000032': array([1., 1.], dtype=float32)}
    """
    path = Path(path)
    if not path.is_file():
        raise AdvCAMError(f"no such file: {path}")
    try:
        with path.open("rb") as file:
            if not _holds_objects(file):
                file.seek(0)
                return np.load(file, allow_pickle=False)
            content = _plain(_Unpickler(file).load())
    except _Refused as error:
        raise AdvCAMError(
            f"{path} is refused: its pickle asks for {error}, and may hold nothing but dicts, numbers, strings and "
            "arrays; it could run code"
        ) from None
    except Exception as error:  # damaged pickles make the unpickler raise whatever it happens to meet
        raise AdvCAMError(f"cannot read {path}: damaged, or no .npy file") from error
    return content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content


class _Refused(Exception):
    """A name that no pickle of arrays needs."""


def _holds_objects(file: BinaryIO) -> bool:
    """Read the header, and leave the file where the data begins."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    return bool(read(file)[2].hasobject)


class _Call:
    """A function that a pickle may call, and may do nothing else to."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a function has no state")


class _DType:
    """A dtype of numbers, strings or objects by its name; of its state, only the order of the bytes counts."""

    def __init__(self, name: Any = None, align: Any = False, copy: Any = False) -> None:
        if not re.fullmatch(r"[biufcSU]\d+|O\d?", name):
            raise pickle.UnpicklingError(f"dtype {name!r}")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "|", "=": "="}[state[1]]
        if state[2] is not None or state[3] is not None or state[4] is not None:
            raise pickle.UnpicklingError("a dtype with parts")

    def plain(self) -> np.dtype[Any]:
        return np.dtype(self.name).newbyteorder(self.order)


class _Array:
    """An array that gets its content from its state."""

    def __init__(self, kind: Any = None, shape: Any = None, code: Any = None) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        wanted = dtype.plain()
        if wanted.kind == "O":
            flat = np.empty(len(content), dtype=object)
            flat[:] = [_plain(item) for item in content]
        else:
            flat = np.frombuffer(content, wanted).copy()
        self.array = flat.reshape(shape, order="F" if by_columns else "C")


def _from_buffer(content: Any, dtype: _DType, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(content, dtype.plain()).copy().reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, content: bytes) -> Any:
    return np.frombuffer(content, dtype.plain())[0]


def _storage(content: bytes) -> Tensor:
    """The numbers of a pickled storage, flat."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are going, and files hold them
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise pickle.UnpicklingError("no storage")
        return torch.tensor([], dtype=storage.dtype).set_(storage.untyped())


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *others: Any) -> Tensor:
    """A part of a storage, no number of it twice; torch refuses what reaches beyond it."""
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset).clone()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as Python 3 writes them in the pickle protocols of Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], _Call] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Call(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Call(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Call(_from_buffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): _Call(lambda *arguments: _Array()),
    ("numpy", "dtype"): _Call(_DType),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch.storage", "_load_from_bytes"): _Call(_storage),
    ("collections", "OrderedDict"): _Call(lambda *arguments: dict(*arguments)),
    ("_codecs", "encode"): _Call(_encode),
    **{(module, "bytes"): _Call(lambda: b"") for module in ("__builtin__", "builtins")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[module, name]


def _plain(value: Any) -> Any:
    """A value with arrays in the place of what stood for them, all the way down."""
    if isinstance(value, _Array):
        if value.array is None:
            raise pickle.UnpicklingError("an array without content")
        return value.array
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, (_Call, _DType)):
        raise pickle.UnpicklingError("a function where a value should be")
    return value


def read_elements(path: Path) -> list[tuple[tuple[str, ...], str]]:
    """The elements of an annotation, in the order in which they begin.

    Files that define entities are refused before anything of theirs is expanded.

    Args:
        path: as PASCAL VOC and ImageNet have them.

    Returns:
        Tags from the root's on, and the element's own text without spaces around it.

    Raises:
        AdvCAMError: the file is missing or damaged, or defines a document type.

    Example:
        >>> read_elements(Path("Annotations/2007_000032.xml"))[1]  # doctest: +SKIP
        (('annotation', 'folder'), 'VOC2012')
    """
    found: list[tuple[tuple[str, ...], list[str]]] = []
    inside: list[int] = []
    parser = expat.ParserCreate()

    def start(tag: str, _: dict[str, str]) -> None:
        above = found[inside[-1]][0] if inside else ()
        inside.append(len(found))
        found.append(((*above, tag), []))

    def text(characters: str) -> None:
        found[inside[-1]][1].append(characters)

    def refuse(*_: object) -> None:
        raise AdvCAMError(f"annotation {path} is refused: it defines a document type; annotations need none")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: inside.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such annotation: {path}") from error
    except (OSError, expat.ExpatError, LookupError, ValueError) as error:
        raise AdvCAMError(f"cannot read annotation {path} ({error}): is it truncated or damaged?") from error
    return [(tags, "".join(parts).strip()) for tags, parts in found]

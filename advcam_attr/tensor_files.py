"""Safetensors files with a digest of their content, by which one flipped bit is found when they are read.

The digest is the BLAKE2b of names, types, shapes and bytes of all tensors and of the other metadata. Files without one,
of others or of earlier releases, are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: The digest's key in the metadata.
DIGEST = "blake2b"


class DamagedFileError(AdvCAMError):
    """A file whose content is not what was written, or is not of its format."""


def dump_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file with its digest; equal content, equal bytes."""
    about = {**metadata, DIGEST: content_digest(tensors, metadata)}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(about.items()))  # the library shuffles them
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        DamagedFileError: it cannot be read, is no safetensors file, or its content has another digest than it says.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise DamagedFileError(f"{path} is damaged, or no safetensors file ({' '.join(str(error).split())})") from error
    digest = metadata.pop(DIGEST, None)
    if digest is not None and digest != content_digest(tensors, metadata):
        raise DamagedFileError(f"{path} is damaged: its content is not what was written; take a copy, or make it again")
    return tensors, metadata


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the BLAKE2b of tensors and texts, in the order of their names, as 32 hexadecimal digits."""
    found = hashlib.blake2b(repr(sorted(metadata.items())).encode(errors="surrogatepass"), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode(errors="surrogatepass"))
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()

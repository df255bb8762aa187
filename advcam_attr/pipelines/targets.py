"""Target classes by top-k, index or name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class TopK:
    """The classes of the k highest logits."""

    k: int


@dataclass(frozen=True)
class Classes:
    """The K classes of a model, and their names by index, None if unknown."""

    count: int
    names: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.names is not None and len(self.names) != self.count:
            raise AdvCAMError(f"there are {len(self.names)} class names for the model's {self.count} classes")

    def name(self, index: int) -> str:
        """Return a class's name, or ``class INDEX``."""
        return self.names[index] if self.names else f"class {index}"

    def file_part(self, index: int) -> str:
        """Return the first synonym of a class's name as a part of file names."""
        first = self.name(index).split(",")[0]
        return re.sub(r"\W+", "_", first).strip("_").lower()[:40] or str(index)

    def parse(self, target: str) -> int | TopK:
        """Read a target: ``"top3"``, an index (negative ones count from the end), or a name.

        Names are matched case-insensitively: whole names first, then the synonyms between commas.
        """
        if top := re.fullmatch(r"top-?(\d+)", target.lower()):
            if not 1 <= int(top[1]) <= self.count:
                raise AdvCAMError(
                    f"target {target!r}: the model has {self.count} classes, so there are top1 to top{self.count}"
                )
            return TopK(int(top[1]))
        if re.fullmatch(r"-?\d+", target):
            if not -self.count <= int(target) < self.count:
                raise AdvCAMError(f"target {target} is not a class: the model has classes 0 to {self.count - 1}")
            return int(target) % self.count
        if self.names is None:
            raise AdvCAMError(f"target {target!r}: the model's classes have no names; give --labels FILE or an index")
        return self._find(target.strip().lower(), self.names)

    def _find(self, wanted: str, names: Sequence[str]) -> int:
        whole = [name.lower() for name in names]
        synonyms = [[part.strip() for part in name.split(",")] for name in whole]
        found = [i for i, name in enumerate(whole) if name == wanted]
        found = found or [i for i, parts in enumerate(synonyms) if wanted in parts]
        if not found:
            raise AdvCAMError(f"unknown class {wanted!r}{nearest(wanted, {p for parts in synonyms for p in parts})}")
        if len(found) > 1:
            raise AdvCAMError(
                f"class name {wanted!r} is ambiguous: give one of the indices {', '.join(map(str, found))}"
            )
        return found[0]


def resolve(targets: Sequence[int | TopK], logits: Tensor | None) -> list[int]:
    """Return the classes of one image, each once, in the order of the targets.

    Args:
        targets: from `Classes.parse`.
        logits: ``(K,)``; needed for a `TopK`.
    """
    found: list[int] = []
    for target in targets:
        if isinstance(target, TopK):
            assert logits is not None
            found += torch.topk(logits, target.k).indices.tolist()
        else:
            found.append(target)
    return list(dict.fromkeys(found))

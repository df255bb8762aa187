"""An annotation's XML in; its elements, each with the tags that lead to it and its text, out."""

from __future__ import annotations

from pathlib import Path
from xml.parsers import expat

from advcam_attr.types import AdvCAMError


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

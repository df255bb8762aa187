"""``advcam data``: checks of data sets on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jsonargparse import Namespace

from advcam_attr.cli.output import say
from advcam_attr.cli.parser import Command, Group, Parser


def _add_check(parser: Parser) -> None:
    text = "folder of PASCAL VOC, MS COCO, CUB, ImageNet or the lists of Choe et al., or above it"
    parser.add_argument("root", metavar="ROOT", help=text)
    parser.add_argument("--deep", action="store_true", help="open every image and mask, too")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that open them (default: none)")


def _check(options: Namespace) -> int:
    from advcam_attr.data.check import check
    from advcam_attr.runs.progress_bar import progress_bar

    progress = partial(progress_bar, desc="decoding images")
    inventory = check(Path(options.root), deep=options.deep, workers=options.workers, progress=progress)
    say(inventory.text())
    return 0 if inventory.sound else 1


GROUP = Group(
    "data sets on disk",
    {"check": Command("list what exists and what is missing, with counts by split and class", _add_check, _check)},
)

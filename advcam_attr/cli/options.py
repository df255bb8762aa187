"""Options that several commands take, and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from advcam_attr.cli.parser import Parser

if TYPE_CHECKING:
    from advcam_attr.pipelines.model import ModelChoice

MODEL_HELP = "timm/NAME, torchvision/NAME or package.module:factory"


def add_model_options(parser: Parser) -> None:
    parser.add_argument("--model-args", type=dict[str, Any], default={}, metavar="JSON",
                        help="""arguments of the model, e.g. '{"num_classes": 20}'""")  # fmt: skip
    parser.add_argument("--checkpoint", type=str, metavar="FILE", help="weights: safetensors, or torch's plain weights")
    parser.add_argument("--input-size", type=int, metavar="PIXELS", help="another input size than the model's own")
    parser.add_argument(
        "--mean", type=float, nargs="+", metavar="M", help="another normalisation: one or three numbers"
    )
    parser.add_argument("--std", type=float, nargs="+", metavar="S", help="another normalisation: one or three numbers")


def add_archive_options(parser: Parser) -> None:
    parser.add_argument("--list", type=str, metavar="LIST", help="the images' ids: ImageSets/Segmentation/test.txt")
    parser.add_argument("--images", type=str, metavar="DIR", help="their photographs, whose sizes are compared")


def model_choice(spec: str, options: Namespace, random_weights: bool, labels: str | None = None) -> ModelChoice:
    from advcam_attr.pipelines.model import ModelChoice

    return ModelChoice(
        spec,
        model_args=options.model_args,
        checkpoint=path_of(options.checkpoint),
        random_weights=random_weights,
        labels=path_of(labels),
        mean=numbers(options.mean),
        std=numbers(options.std),
        input_size=options.input_size,
    )


def path_of(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def parse_parts(items: Sequence[str] | None) -> dict[str, Any]:
    """The parts of a recipe as ``--set KEY=VALUE`` gives them; values are JSON where they can be."""
    from advcam_attr.types import AdvCAMError

    parts: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise AdvCAMError(f"--set takes KEY=VALUE, got {item!r}")
        try:
            parts[key] = json.loads(value)
        except ValueError:
            parts[key] = value
    return parts

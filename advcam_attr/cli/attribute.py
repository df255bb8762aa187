"""``advcam attribute``: maps of classes in images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionYesNo, Namespace

from advcam_attr.cli.output import say
from advcam_attr.cli.parser import (
    MODEL_HELP,
    Command,
    Parser,
    add_model_options,
    model_choice,
    numbers,
    parse_parts,
    path_of,
    several,
)
from advcam_attr.reading import printable
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.pipelines.attribute import Settings

#: The words for what can happen to an image.
_STATUS = {"written": "done", "kept": "cached", "failed": "failed"}


def _add_options(parser: Parser) -> None:
    parser.usage = "%(prog)s IMAGE... --model MODEL [options]"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders of them")
    parser.add_argument("--model", type=str, required=True, metavar="MODEL", help=MODEL_HELP)
    text = "folder of the results (default: %(default)s)"
    parser.add_argument("--out", type=str, default="advcam_out", metavar="DIR", help=text)
    parser.add_argument("--overwrite", action="store_true", help="recompute everything, whatever is in the folder")
    text = "check everything and list what is done and what is left, and do nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)
    add_climb_options(parser)


def add_climb_options(parser: Parser) -> None:
    """Declare how images are attributed, except for the model's name."""
    group = add_model_options(parser)
    group.add_argument("--random-weights", action="store_true", help="use the model without pretrained weights")
    group = parser.add_argument_group("classes")
    group.add_argument("--labels", type=str, metavar="FILE", help="class names, one a line")
    text = "an index, a class name, or top1, top2, ...; may be repeated (default: top1)"
    group.add_argument("--target", action="append", metavar="CLASS", help=text)
    text = "maps logits to probabilities (default: %(default)s)"
    group.add_argument("--probability", choices=["softmax", "sigmoid"], default="softmax", help=text)
    group = parser.add_argument_group("maps")
    text = "cam, grad_cam, grad_cam++, layer_cam, hires_cam, xgrad_cam or eigen_cam (default: %(default)s)"
    group.add_argument("--base", type=str, default="cam", help=text)
    group.add_argument("--layer", type=str, metavar="NAME", help="module whose output is mapped (default: found)")
    text = "auto, one_step, official, official_wrn38, paper or wsol (default: %(default)s)"
    group.add_argument("--recipe", type=str, default="auto", help=text)
    group.add_argument("--steps", type=int, metavar="T", help="steps of the climb (default: the recipe's)")
    text = "climb the mirror image, too (default: the recipe's)"
    group.add_argument("--flip", action=ActionYesNo(no_prefix="no-"), default=None, help=text)
    group.add_argument("--scales", type=float, nargs="+", metavar="S", help="image scales (default: the recipe's)")
    text = "another part of the recipe, e.g. objective=target; may be repeated"
    group.add_argument("--set", action="append", metavar="KEY=VALUE", help=text)
    text = "saliency maps, foreground bright, named as the images"
    group.add_argument("--saliency", type=str, metavar="DIR", help=text)
    group = parser.add_argument_group("runtime")
    text = "cpu, cuda, cuda:1, ...; auto takes a GPU if there is one (default: %(default)s)"
    group.add_argument("--device", type=str, default="auto", help=text)
    text = "maps made at once (default: %(default)s)"
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help=text)


def _run(options: Namespace) -> None:
    from tqdm import tqdm

    from advcam_attr.data.images import expand_images
    from advcam_attr.pipelines.attribute import attribute_images

    settings = replace(settings_of(options, options.model), overwrite=options.overwrite)
    images = expand_images(options.images)
    if options.dry_run:
        from advcam_attr.pipelines.attribute_plan import plan_attribution

        say(plan_attribution(images, Path(options.out), settings))
        return
    counts = dict.fromkeys(_STATUS, 0)
    errors = []
    with tqdm(total=len(images), unit="image", disable=None) as bar:
        for result in attribute_images(images, Path(options.out), settings):
            bar.update()
            counts[result.status] += 1
            errors += [result.error] if result.status == "failed" else []
            for one in result.classes:
                at = min(one.scores, key=lambda scores: abs(scores.scale - 1))
                scores = (
                    f"{at.logit[0]:.2f} -> {at.logit[-1]:.2f}",
                    f"{at.probability[0]:.3f} -> {at.probability[-1]:.3f}",
                )
                about = f"{result.image.name}: {one.name} ({one.index}), logit {scores[0]}, probability {scores[1]}"
                bar.write(printable(f"{about}: {Path(options.out, one.overlay)}"))
    if len(images) == 1 and errors:
        raise AdvCAMError(errors[0])
    say("; ".join(f"{what}: {counts[status]}" for status, what in _STATUS.items()) + f"; results in {options.out}")
    if errors:
        raise AdvCAMError(f"{len(errors)} of {len(images)} images could not be used: {several(errors)}")


def settings_of(options: Namespace, model: str) -> Settings:
    """Return the settings that the options of `add_climb_options` give."""
    from advcam_attr.pipelines.attribute import Settings

    return Settings(
        model_choice(model, options, options.random_weights, options.labels),
        targets=tuple(options.target or ["top1"]),
        base=options.base,
        recipe=options.recipe,
        overrides=overrides_of(options),
        layer=options.layer,
        probability=options.probability,
        saliency=path_of(options.saliency),
        device=options.device,
        batch_size=options.batch_size,
    )


def overrides_of(options: Namespace) -> dict[str, Any]:
    """Return the parts of the recipe that are given as options of their own and by ``--set``."""
    parts = parse_parts(options.set)
    given = {"steps": options.steps, "flip": options.flip, "scales": numbers(options.scales)}
    given = {key: value for key, value in given.items() if value is not None}
    for key in given.keys() & parts.keys():
        raise AdvCAMError(f"{key} is given twice: by --{key} and by --set {key}=...")
    return parts | given


COMMAND = Command("map the evidence of classes in images", _add_options, _run)

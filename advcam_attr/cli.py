"""Command lines in; calls of the pipelines, what they tell on the standard output, and exit codes out.

Nothing heavy is imported before a command runs, so that help and typing errors come at once. What a user can mend is
one line on the standard error and exit code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import HelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

if TYPE_CHECKING:
    from advcam_attr.pipelines.model import ModelChoice

_MODEL_HELP = "timm/NAME, torchvision/NAME or package.module:factory"


class _UsageError(Exception):
    """A command line that cannot be understood."""


class _Parser(ArgumentParser):
    """A parser whose errors are one line, with the nearest option for a misspelt one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _UsageError(message) from ex


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; None takes the process's.

    Returns:
        The exit code: 0, 2 for an error of the user, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parsers()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except _UsageError as error:
        return _fail(_explain(str(error), argv, parser, commands))
    try:
        return _COMMANDS[arguments.command][1](arguments[arguments.command])
    except KeyboardInterrupt:
        print("advcam: interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        from advcam_attr.types import AdvCAMError

        if not isinstance(error, AdvCAMError):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"advcam: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


# --- what can be asked ------------------------------------------------------------------------------------------------


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="advcam", description="AdvCAM: where an image classifier sees a class, beyond the obvious.")
    parser.add_argument("--version", action="version", version=_version())
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND")
    commands = {}
    for name, (add_options, _, text) in _COMMANDS.items():
        commands[name] = _Parser(prog=f"advcam {name}", description=text)
        add_options(commands[name])
        subcommands.add_subcommand(name, commands[name], help=text)
        commands[name].prog = f"advcam {name}"
    return parser, commands


def _version() -> str:
    from importlib import metadata

    try:
        return f"advcam {metadata.version('advcam_attr')}"
    except metadata.PackageNotFoundError:
        return "advcam (not installed)"


def _add_model_options(parser: _Parser) -> None:
    parser.add_argument("--model-args", type=dict[str, Any], default={}, metavar="JSON",
                        help="""arguments of the model, e.g. '{"num_classes": 20}'""")  # fmt: skip
    parser.add_argument("--checkpoint", type=str, metavar="FILE", help="weights: safetensors, or torch's plain weights")
    parser.add_argument("--input-size", type=int, metavar="PIXELS", help="another input size than the model's own")
    parser.add_argument(
        "--mean", type=float, nargs="+", metavar="M", help="another normalisation: one or three numbers"
    )
    parser.add_argument("--std", type=float, nargs="+", metavar="S", help="another normalisation: one or three numbers")


def _add_attribute(parser: _Parser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders of them")
    parser.add_argument("--model", type=str, required=True, metavar="MODEL", help=_MODEL_HELP)
    _add_model_options(parser)
    parser.add_argument("--random-weights", action="store_true", help="use the model without training")
    parser.add_argument("--labels", type=str, metavar="FILE", help="class names, one a line")
    parser.add_argument("--target", action="append", metavar="CLASS",
                        help="an index, a class name, or top1, top2, ...; may be repeated (default: top1)")  # fmt: skip
    parser.add_argument(
        "--out", type=str, default="advcam_out", metavar="DIR", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="do everything anew, whatever is in the folder")
    parser.add_argument(
        "--base", type=str, default="cam", help="cam, grad_cam, grad_cam++ or layer_cam (default: %(default)s)"
    )
    parser.add_argument("--recipe", type=str, default="auto", help="auto, official or paper (default: %(default)s)")
    parser.add_argument("--steps", type=int, metavar="T", help="steps of the climb (default: the recipe's)")
    parser.add_argument("--flip", action=ActionYesNo(no_prefix="no-"), default=None,
                        help="climb the mirror image, too (default: the recipe's)")  # fmt: skip
    parser.add_argument("--scales", type=float, nargs="+", metavar="S", help="image scales (default: the recipe's)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE",
                        help="another part of the recipe, e.g. objective=target; may be repeated")  # fmt: skip
    parser.add_argument("--layer", type=str, metavar="NAME", help="module whose output is mapped (default: found)")
    parser.add_argument("--saliency", type=str, metavar="DIR",
                        help="a saliency detector's pictures, foreground light, named as the images")  # fmt: skip
    parser.add_argument("--probability", choices=["softmax", "sigmoid"], default="softmax",
                        help="what turns logits into probabilities (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--device",
        type=str,
        default="auto",
        help="cpu, cuda, cuda:1, ...; auto, the default, takes a GPU if there is one",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="maps made at once (default: %(default)s)"
    )


def _add_inspect(parser: _Parser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help=_MODEL_HELP)
    _add_model_options(parser)
    parser.add_argument("--layer", type=str, metavar="NAME", help="module whose output is mapped (default: found)")


def _add_demo(parser: _Parser) -> None:
    parser.add_argument(
        "--out",
        type=str,
        default="demo",
        metavar="DIR",
        help="folder of the table and the figure (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of scenes and training (default: %(default)s)")


def _add_census(parser: _Parser) -> None:
    parser.add_argument("--out", type=str, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--filter", type=str, default="*", metavar="PATTERN", help="e.g. 'timm/resnet*'")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: %(default)s)")


# --- what is done -----------------------------------------------------------------------------------------------------


#: What can become of an image, in words for users.
_STATUS = {"written": "done", "kept": "kept from before", "failed": "failed"}


def _attribute(options: Namespace) -> int:
    from tqdm import tqdm

    from advcam_attr.data.images import expand_images
    from advcam_attr.pipelines.attribute import Settings, attribute_images

    settings = Settings(
        _model(options.model, options, options.random_weights, options.labels),
        targets=tuple(options.target or ["top1"]),
        base=options.base,
        recipe=options.recipe,
        overrides=_overrides(options),
        layer=options.layer,
        probability=options.probability,
        saliency=_path(options.saliency),
        device=options.device,
        batch_size=options.batch_size,
        overwrite=options.overwrite,
    )
    images = expand_images(options.images)
    counts = dict.fromkeys(_STATUS, 0)
    errors = []
    with tqdm(total=len(images), unit="image", disable=None) as bar:
        for result in attribute_images(images, Path(options.out), settings):
            bar.update()
            counts[result.status] += 1
            errors += [result.error] if result.status == "failed" else []
            for one in result.classes:
                at = min(one.scores, key=lambda scores: abs(scores.scale - 1))
                bar.write(
                    f"{result.image.name}: {one.name} ({one.index}), logit {at.logit[0]:.2f} -> {at.logit[-1]:.2f}, "
                    f"probability {at.probability[0]:.3f} -> {at.probability[-1]:.3f}: {Path(options.out, one.overlay)}"
                )
    if len(images) == 1 and errors:
        return _fail(errors[0])
    print("; ".join(f"{what}: {counts[status]}" for status, what in _STATUS.items()) + f"; results in {options.out}")
    if errors:
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        return _fail(f"{len(errors)} of {len(images)} images could not be used: {'; '.join(errors[:5])}{more}")
    return 0


def _inspect(options: Namespace) -> int:
    import torch

    from advcam_attr.heads import view
    from advcam_attr.networks.sources import is_factory
    from advcam_attr.pipelines.model import head_at
    from advcam_attr.report.inspection import inspection

    for spec in options.models:
        loaded = _model(spec, options, options.checkpoint is None and not is_factory(spec)).load()
        size = loaded.preprocessing.size or (224, 224)
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        print(inspection(loaded, head_at(view(loaded.model, options.layer), image, spec)))
    return 0


def _demo(options: Namespace) -> int:
    from advcam_attr.pipelines.demo import DemoSettings, run_demo

    result = run_demo(Path(options.out), DemoSettings(seed=options.seed), tell=print)
    print(result.table)
    print(f"table: {result.table_file}, figure: {result.figure_file} ({result.seconds:.0f} s)")
    return 0


def _census(options: Namespace) -> int:
    import timm
    import torchvision
    from tqdm import tqdm

    from advcam_attr.files import replacing
    from advcam_attr.heads.census import census, summary, write_markdown

    entries = list(tqdm(census(match=options.filter, jobs=options.jobs), unit="model", disable=None))
    for library, counts in summary(entries).items():
        print(f"{library}: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    if options.out is not None:
        versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}"
        with replacing(Path(options.out)) as file:
            write_markdown(entries, file, versions=versions)
    return 0


def _model(spec: str, options: Namespace, random_weights: bool, labels: str | None = None) -> ModelChoice:
    from advcam_attr.pipelines.model import ModelChoice

    return ModelChoice(
        spec,
        model_args=options.model_args,
        checkpoint=_path(options.checkpoint),
        random_weights=random_weights,
        labels=_path(labels),
        mean=_numbers(options.mean),
        std=_numbers(options.std),
        input_size=options.input_size,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _overrides(options: Namespace) -> dict[str, Any]:
    """The recipe's parts that are given as options of their own and by ``--set``; values are JSON where they can be."""
    from advcam_attr.types import AdvCAMError

    parts: dict[str, Any] = {}
    for item in options.set or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise AdvCAMError(f"--set takes KEY=VALUE, got {item!r}")
        try:
            parts[key] = json.loads(value)
        except ValueError:
            parts[key] = value
    given = {"steps": options.steps, "flip": options.flip, "scales": _numbers(options.scales)}
    return parts | {key: value for key, value in given.items() if value is not None}


# --- what went wrong --------------------------------------------------------------------------------------------------


def _explain(message: str, argv: Sequence[str], parser: _Parser, commands: dict[str, _Parser]) -> str:
    """A parser's message in the words of the command line."""
    from difflib import get_close_matches

    message = " ".join(message.split())
    command = next((word for word in argv if word in commands), None)
    if unknown := re.match(r"unrecognized arguments: (\S+)", message):
        name = unknown[1].split("=")[0]
        known = [o for a in (commands[command] if command else parser)._actions for o in a.option_strings]
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; see advcam {command or ''} --help".replace("  ", " ")
        return f"unknown option {name}{hint}"
    if choice := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
        word = choice[2]
        if choice[1].startswith("-"):
            return f"{choice[1]} takes one of {choice[3]}, got {word!r}"
        close = get_close_matches(word, commands, n=1)
        return f"unknown command {word!r}; " + (
            f"did you mean {close[0]}?" if close else f"there are {', '.join(commands)}"
        )
    if message.startswith('expected "command"'):
        return f"give a command: {', '.join(commands)}; see advcam --help"
    if missing := re.match(r"the following arguments are required: (.+)", message):
        names = missing[1].replace(f"{command}.", "").split(", ")
        return f"{command} needs " + " and ".join(
            _as_typed(name, commands[command] if command else parser) for name in names
        )
    if wrong := re.match(r'Parser key "([\w.]+)"[^:]*: (?:Expected an? (.+?)\. )?Got value: (.*)', message):
        kind = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'dict'>": "JSON, {...}"}
        name = _as_typed(wrong[1].rsplit(".", 1)[-1], commands[command] if command else parser)
        return f"{name} takes {kind.get(wrong[2], wrong[2])}, got {wrong[3]}"
    return message


def _as_typed(name: str, parser: _Parser) -> str:
    """An argument's name as users type it."""
    action = next((a for a in parser._actions if a.dest == name), None)
    if action is None:
        return name
    return action.option_strings[0] if action.option_strings else str(action.metavar)


_COMMANDS: dict[str, tuple[Callable[[_Parser], None], Callable[[Namespace], int], str]] = {
    "attribute": (_add_attribute, _attribute, "map where a model sees classes in images"),
    "inspect": (_add_inspect, _inspect, "tell what a model's head allows, without its weights"),
    "demo": (_add_demo, _demo, "train a small net on toy scenes and compare CAM with AdvCAM, offline"),
    "census": (_add_census, _census, "tell what the heads of all timm and torchvision classifiers allow"),
}

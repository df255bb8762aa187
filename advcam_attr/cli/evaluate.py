"""``advcam evaluate``: scores of results on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from advcam_attr.cli.output import say
from advcam_attr.cli.parser import Command, Group, Parser, add_archive_options, path_of


def _add_seeds(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder of advcam wsss, wherever it was made")


def _seeds(options: Namespace) -> None:
    from advcam_attr.cli.wsss import OPTIONS
    from advcam_attr.pipelines.config import config_of
    from advcam_attr.pipelines.wsss.run import Run
    from advcam_attr.pipelines.wsss.score import evaluate

    say(evaluate(Run(replace(OPTIONS.read(config_of(Path(options.run))), run=options.run))))


def _add_masks(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="label maps, one ID.png an image")
    parser.add_argument("--root", type=str, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--kind", choices=["voc", "coco"], default="voc", help="of data set (default: %(default)s)")
    parser.add_argument("--split", type=str, default="train", help="images to score (default: %(default)s)")
    parser.add_argument("--allow-missing", action="store_true", help="ignore images without a label map")
    parser.add_argument("--out", type=str, metavar="DIR", help="folder for evaluation.json (default: FOLDER)")


def _masks(options: Namespace) -> None:
    from advcam_attr.pipelines.config import MaskedData
    from advcam_attr.pipelines.evaluate import evaluate_masks, left_out, write_mask_evaluation
    from advcam_attr.tables.segmentation import table_ix

    folder = Path(options.folder)
    data = MaskedData(options.root, options.kind).read(options.split)
    found = evaluate_masks(folder, data, allow_missing=options.allow_missing)
    scores = found.scores()
    say(table_ix({folder.name: found.matrix.iou().tolist()}, data.classes).text())
    say(f"mIoU {100 * scores.mean_iou:.1f}, precision {100 * scores.precision:.1f}, recall {100 * scores.recall:.1f}")
    for line in left_out(found.scope):
        say(line)
    say(f"wrote {write_mask_evaluation(found, path_of(options.out) or folder)}")


def _add_submission(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="archive for PASCAL VOC's test server")
    add_archive_options(parser)


def _submission(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss.submission import check_submitted
    from advcam_attr.types import AdvCAMError

    problems = check_submitted(Path(options.file), path_of(options.list), path_of(options.images))
    if problems:
        raise AdvCAMError(f"{options.file} is no valid submission: {'; '.join(problems)}")
    say(f"{options.file} is a valid submission to PASCAL VOC's test server")


GROUP = Group(
    "scores of results on disk",
    {
        "seeds": Command("score the seeds of a run, beside the paper's tables", _add_seeds, _seeds),
        "masks": Command("score label maps against a data set's masks", _add_masks, _masks),
        "submission": Command("check an archive for PASCAL VOC's test server", _add_submission, _submission),
    },
)

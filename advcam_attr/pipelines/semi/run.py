"""Stages of a run of semi-supervised segmentation by CCT, and Table VI.

The paper's Table VI: CCT on VOC's 1464 labelled images and the 9118 others of train_aug with AdvCAM's masks. The run
folder holds

- ``cct/``: the training; ``cct.safetensors`` is the net that was best in validation, ``log.jsonl`` has the terms of the
  loss by step, ``validation.jsonl`` the mean IoU;
- ``predictions/SPLIT/``, ``predictions_crf/SPLIT/``: label maps, and their ``evaluation.json``;
- ``tables.md``, ``report.json``, ``config.json`` and ``run.log``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from advcam_attr import __version__
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import write_json, write_text
from advcam_attr.metrics.evaluation import MaskEvaluation
from advcam_attr.networks.cct import CCT, CCT_NET
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.checks import check_runtime, check_truth
from advcam_attr.pipelines.config import changed_settings, path_of, recorded_config, require_unchanged
from advcam_attr.pipelines.evaluate import evaluate_masks, left_out, write_mask_evaluation
from advcam_attr.pipelines.semi.config import SemiConfig
from advcam_attr.pipelines.semi.data import SemiData, read_semi
from advcam_attr.pipelines.semi.predict import write_predictions
from advcam_attr.pipelines.semi.training import WEIGHTS, check_training, train_semi, validations
from advcam_attr.runs.progress import masks_progress, training_progress
from advcam_attr.runs.run_log import MULTILINE, run_log
from advcam_attr.runs.sharding import shard_of, shard_of_launch
from advcam_attr.runs.stage import wait_for_ranks
from advcam_attr.tables.segmentation import table_vi, val_and_test
from advcam_attr.training.log import read_log
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


#: The sections of the configuration that a trained net depends on.
_SECTIONS = ("data.kind", "data.labelled", "data.labelled_count", "data.unlabelled", "data.pseudo", "net", "training")


class SemiRun:
    """A run of semi-supervised segmentation; its stages resume, and share the images that they read.

    Raises:
        AdvCAMError: by all stages, if data, net, or earlier results are missing or do not fit.
    """

    def __init__(self, config: SemiConfig) -> None:
        self.config, self.folder = config, path_of(config.run)

    def run(self) -> None:
        plan = self.plan()
        if shard_of_launch().rank == 0:
            logger.info(plan)
        if self.config.net.trained is None:
            self.train()
        self.evaluate()

    def check(self) -> None:
        """Raise for whatever a stage could not use: settings, files, data, net, device and packages."""
        config, predicted = self.config, self.predicted
        check_runtime(config.runtime, self.folder, trains=config.net.trained is None)
        if config.net.trained is not None:
            self._trained_net()
        else:
            check_training(config.training, self._new_net(), self.data)
            if predicted.classes != self.data.labelled.classes:
                of = f"{predicted.split} has other classes than {self.data.labelled.split}"
                raise AdvCAMError(f"{of}: check predict.split")
        if not self.predicted.samples:
            raise AdvCAMError(f"there is no image of {self.predicted.split} to label: check predict.split")
        check_truth(self.predicted)

    def plan(self) -> str:
        """Check all stages, and return what exists of each; a training that ended early counts as done."""
        self.check()
        name = "predictions" if self.config.predict.crf is None else "predictions after the CRF"
        stages = [masks_progress(f"{name} of {self.predicted.split}", self.predictions, self.predicted.samples)]
        changed = changed_settings(self.folder, self.config, *_SECTIONS)
        if self.config.net.trained is None:
            steps = len(self.data.unlabelled.samples) // self.config.training.batch * self.config.training.epochs
            stages.insert(0, training_progress("training", self.folder / "cct", WEIGHTS, steps))
        return "\n".join(str(replace(stage, changed=changed)) for stage in stages)

    def train(self) -> Path:
        """Run the stage ``train``, and return the net's file."""
        config, data = self.config, self.data
        if config.net.trained is not None:
            raise AdvCAMError(f"net.trained {config.net.trained} is trained already: go on with advcam semi evaluate")
        pseudo = "" if data.pseudo is None else f", with pseudo masks of {config.data.pseudo}"
        logger.info(
            f"training on {len(data.labelled.samples)} labelled images ({data.labelled.split}), "
            f"{len(data.unlabelled.samples)} unlabelled ones ({data.unlabelled.split}) of {config.data.root}{pseudo}"
        )
        net = self._new_net()
        with recorded_config(self.folder, config):
            return train_semi(config.training, net, data, self.folder / "cct", config.runtime)

    def evaluate(self) -> MaskEvaluation | None:
        """Run the stage ``evaluate``: label maps, their scores (on the first process), Table VI and ``report.json``."""
        require_unchanged(self.folder, self.config, *_SECTIONS)
        with run_log(self.folder):
            self.predict()
            wait_for_ranks(self.predictions, self.predicted)
            if shard_of().rank:
                return None
            found = self.score()
            self._write_report(found)
            return found

    def predict(self) -> Path:
        """Predict the label maps, and return their folder."""
        data, (net, file) = self.predicted, self._trained_net()
        logger.info(f"predicting {len(data.samples)} images of {data.name} {data.split} by {file}: {self.predictions}")
        write_predictions(self.config.predict, net, data, self.predictions, self.config.runtime)
        return self.predictions

    def score(self) -> MaskEvaluation:
        """Score the label maps, and write ``evaluation.json`` beside them."""
        found = evaluate_masks(self.predictions, self.predicted)
        report = write_mask_evaluation(found, self.predictions)
        logger.info(f"mIoU {100 * found.scores().mean_iou:.2f} over {len(found.scope.ids)} images ({report})")
        for line in left_out(found.scope):
            logger.info(line)
        return found

    @cached_property
    def data(self) -> SemiData:
        return read_semi(self.config.data)

    @cached_property
    def predicted(self) -> SegmentationData:
        split = self.config.predict.split or self.config.data.val
        if split is None:
            raise AdvCAMError("no split to predict: give predict.split or data.val")
        return self.config.data.read(split)

    @property
    def predictions(self) -> Path:
        kind = "predictions" if self.config.predict.crf is None else "predictions_crf"
        return self.folder / kind / self.predicted.split

    def _trained_net(self) -> tuple[CCT, Path]:
        data, trained = self.predicted, self.config.net.trained
        file = self.folder / "cct" / WEIGHTS if trained is None else path_of(trained)
        if not file.is_file():
            raise AdvCAMError(f"there is no net {file}: train it first (advcam semi train)")
        net, classes = load_net(file, CCT_NET)
        if net.spec.num_names != len(data.classes) or classes not in ((), data.classes):  # authors' files name none
            raise AdvCAMError(f"{file} is of {net.spec.num_names} other classes than {data.name}'s {len(data.classes)}")
        return net, file

    def _new_net(self) -> CCT:
        return self.config.net.make(len(self.data.labelled.classes) + 1, self.config.runtime.seed)

    def _write_report(self, found: MaskEvaluation) -> None:
        kind = "CCT without pseudo masks" if self.config.data.pseudo is None else "CCT with AdvCAM's masks"
        if not self.config.net.auxiliary:
            kind = "the labelled images alone"
        if self.config.net.trained is not None:
            kind = f"a given net, {Path(self.config.net.trained).name}"
        shares = val_and_test(found.scores().mean_iou, self.predicted.split)
        table = table_vi({} if shares is None else {kind: shares}, f"here, {len(found.scope.ids)} images")
        write_text(self.folder / "tables.md", table.markdown() + "\n")
        about, cct = found.describe(), self.folder / "cct"
        losses = [record["loss"] for record in read_log(cct / "log.jsonl") if "loss" in record]
        report = {
            "made_by": f"advcam_attr {__version__}",
            "predictions": {"of": about["data"], "images": about["images"], **about["scores"]},
            "validation": [{"epoch": one["epoch"], "val_miou": one["val_miou"]} for one in validations(cct)],
            "loss": {"steps": len(losses), "first": losses[0], "last": losses[-1]} if losses else None,
            "tables": [table.describe()],
        }
        write_json(self.folder / "report.json", report)
        logger.info(f"wrote {self.folder / 'tables.md'} and {self.folder / 'report.json'}")
        logger.info("\n" + table.text(), extra=MULTILINE)

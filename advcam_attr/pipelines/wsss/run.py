"""An opened run folder: its configuration, its data and its paths, shared by all stages.

- ``config.json``: the configuration of the last stage;
- ``classifier/``: the trained net, its log and its scores (`advcam_attr.pipelines.wsss.classifier`);
- ``seeds/cam/``, ``seeds/advcam/``: localization maps and their ``evaluation.json``;
- ``refined/cam/``, ``refined/advcam/``: pseudo ground truth, a folder a step (`advcam_attr.pipelines.wsss.refine`), and
  ``instances/`` (`advcam_attr.pipelines.wsss.instances`);
- ``segmentation/cam/``, ``segmentation/advcam/``: nets trained on it, and their predictions
  (`advcam_attr.pipelines.wsss.segment`);
- ``tables.md``, ``report.json``: the paper's tables with this run's rows (`advcam_attr.pipelines.wsss.score`).
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path

from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.pipelines.config import changed_settings, recorded_config, require_unchanged, with_paths
from advcam_attr.pipelines.wsss.config import WSSSConfig
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


_CLASSIFIER = ("data.kind", "data.train", "net", "classifier")
_SEEDS = (*_CLASSIFIER, "data.seeds", "seeds")
_REFINE = (*_SEEDS, "refine")

#: The sections of a configuration that each stage's results depend on.
SECTIONS = {
    "classifier": _CLASSIFIER,
    "seeds": _SEEDS,
    "refine": _REFINE,
    "segment": (*_REFINE, "segmentation"),
}


class Run:
    """A run. Each split of the data set is read once.

    Attributes:
        config: with all paths expanded.
    """

    def __init__(self, config: WSSSConfig) -> None:
        self._given = config
        self.config: WSSSConfig = with_paths(config, "run", "root", "checkpoint", "trained", "class_map", "saliency")
        self.runtime = config.runtime
        self._splits: dict[str, SegmentationData] = {}
        self._existing: dict[str, SegmentationData] = {}

    def folder(self, *parts: str) -> Path:
        """Return a path in the run folder."""
        return Path(self.config.run, *parts)

    def split(self, name: str) -> SegmentationData:
        """Return a split of the data set."""
        if name not in self._splits:
            self._splits[name] = self.config.data.read(name)
        return self._splits[name]

    def existing(self, name: str) -> SegmentationData:
        """Return a split without the images whose files are missing, which are logged."""
        if name not in self._existing:
            data, missing = without_missing(self.split(name))
            if missing:
                logger.info(f"{len(missing)} images of {data.split} are missing and left out, e.g. {missing[0].image}")
            self._existing[name] = data
        return self._existing[name]

    @property
    def seeds_data(self) -> SegmentationData:
        """The images that maps are made of."""
        return self.existing(self.config.data.seeds_split)

    @property
    def predicted_data(self) -> dict[str, SegmentationData]:
        """The images that segmentation nets predict, by ``val`` and ``test``."""
        data = self.config.data
        found = {name: self.existing(split) for name, split in (("val", data.val), ("test", data.test)) if split}
        if not found:
            raise AdvCAMError("segmentation nets have no images to predict: give data.val, or data.test")
        return found

    def changed(self, stage: str) -> str:
        """Return how the settings of a stage and those before it differ from the recorded ones, as text."""
        return changed_settings(self.folder(), self._given, *SECTIONS[stage])

    def require_unchanged(self, stage: str) -> None:
        """Raise AdvCAMError if the results of a stage, or of one before it, were made with other settings."""
        require_unchanged(self.folder(), self._given, *SECTIONS[stage])

    def recorded(self) -> AbstractContextManager[None]:
        """Record the configuration and the log for the time of a stage."""
        return recorded_config(self.folder(), self._given)

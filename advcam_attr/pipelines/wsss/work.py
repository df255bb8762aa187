"""A configuration and its images in; the parts of a run of weakly supervised segmentation, to be counted, out."""

from __future__ import annotations

from advcam_attr.data.samples import SegmentationData
from advcam_attr.pipelines.work import Work, files_done, steps_done
from advcam_attr.pipelines.wsss.classifier import WEIGHTS as CLASSIFIER_WEIGHTS
from advcam_attr.pipelines.wsss.config import WSSSConfig, folder_of
from advcam_attr.pipelines.wsss.refine import final_step
from advcam_attr.pipelines.wsss.segment import FOLDER, WEIGHTS, predictions_folder
from advcam_attr.runs.map_store import MapStore


def classifier_work(config: WSSSConfig, data: SegmentationData) -> Work:
    """The training of the classifier on these images, in steps."""
    total = len(data.samples) // config.classifier.batch * config.classifier.epochs
    done = steps_done(folder_of(config, "classifier"), CLASSIFIER_WEIGHTS, total)
    return Work("classifier", "classifier", "steps", total, done)


def seeds_work(config: WSSSConfig, method: str, data: SegmentationData) -> Work:
    """The maps of a method, an image each."""
    store, ids = MapStore(folder_of(config, "seeds", method, "maps")), [sample.id for sample in data.samples]
    name = f"seeds {method}"
    return Work(name, name, "images", len(ids), lambda: len(ids) - len(store.missing(ids)))


def refine_work(config: WSSSConfig, method: str, data: SegmentationData) -> Work:
    """The pseudo ground truth of a method, an image each; what is trained for it counts as a part of each."""
    done = files_done(folder_of(config, "refined", method, final_step(config.refine)), _pngs(data))
    return Work(f"refine {method}", f"refine by {config.refine.method}", "images", len(data.samples), done)


def training_work(config: WSSSConfig, method: str) -> Work:
    """The training of the segmentation net on a method's masks, in steps."""
    total = config.segmentation.steps
    done = steps_done(folder_of(config, "segmentation", method, FOLDER), WEIGHTS, total)
    return Work(f"segment {method}: training", "segment: training", "steps", total, done)


def prediction_work(config: WSSSConfig, method: str, data: SegmentationData, crf: str | None) -> Work:
    """The label maps of a split by the net of a method's masks, with a CRF or without one."""
    folder = predictions_folder(folder_of(config, "segmentation", method), data.split, crf)
    kind = "segment: predictions" + (" after the CRF" if crf else "")
    name = f"segment {method}: {folder.name}"
    return Work(name, kind, "images", len(data.samples), files_done(folder, _pngs(data)))


def _pngs(data: SegmentationData) -> list[str]:
    return [f"{sample.id}.png" for sample in data.samples]

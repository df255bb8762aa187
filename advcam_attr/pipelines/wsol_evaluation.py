"""The maps of a run and true boxes in; the measures of localization, and ``localization.json``, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from advcam_attr.engine.store import MapStore
from advcam_attr.files import write_json
from advcam_attr.metrics.localization import BoxTable, Contours, LocalizationScores, localization_scores
from advcam_attr.pipelines.box_table import BoxedImages, Search, save_table, score_boxes
from advcam_attr.pipelines.run_folder import read_record
from advcam_attr.pipelines.wsol_maps import read_map, read_predictions, wsol_map_store
from advcam_attr.types import AdvCAMError, Sample

#: What the report is called in a run folder, and the table of each kind of contours.
REPORT = "localization.json"
TABLES: dict[Contours, str] = {"all": "boxes_all.safetensors", "largest": "boxes_largest.safetensors"}


@dataclass(frozen=True)
class StoredMaps:
    """The maps of a store by image id; it can be sent to other processes."""

    store: MapStore

    def __call__(self, id: str) -> Tensor:
        """The map of an image, ``(h, w)``."""
        return read_map(self.store, id)


def score_run(
    out: Path,
    data: BoxedImages,
    *,
    samples: Sequence[Sample] | None = None,
    contours: Contours = "all",
    search: Search = "auto",
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BoxTable:
    """Score the boxes of a run's maps at every threshold.

    Args:
        out: the run folder of `advcam_attr.pipelines.wsol_maps.make_wsol_maps`.
        data: images, boxes and original sizes.
        samples: some of the data's, for a shard.
        contours, search, processes, progress: see `advcam_attr.pipelines.box_table.score_boxes`.

    Returns:
        The table, with predictions.

    Raises:
        AdvCAMError: maps or predictions are missing, or made of predicted classes; else as `score_boxes`.
    """
    store, record = wsol_map_store(out), read_record(out / "maps.json")
    if record is not None and record["settings"].get("target") == "predicted":
        raise AdvCAMError(f"the maps of {out} are of predicted classes: score those of the true classes")
    return score_boxes(
        StoredMaps(store), data, samples=samples, predictions=read_predictions(out), contours=contours, search=search,
        processes=processes, progress=progress,
    )  # fmt: skip


def evaluate_wsol(
    out: Path,
    data: BoxedImages,
    *,
    contours: Sequence[Contours] = ("all", "largest"),
    search: Search = "auto",
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Contours, LocalizationScores]:
    """Score a run, and write ``localization.json`` after the tables that it was made of.

    Args:
        out: the run folder.
        data: images, boxes and original sizes.
        contours: ``"all"`` gives MaxBoxAccV2, ``"largest"`` MaxBoxAcc; each is a pass over the maps.
        search, processes, progress: see `score_run`.

    Returns:
        The measures by contours.

    Raises:
        AdvCAMError: as `score_run`.

    Example:
        >>> evaluate_wsol(Path("runs/cub"), data, processes=2)["all"].max_box_acc_v2  # doctest: +SKIP
        0.686
    """
    found: dict[Contours, LocalizationScores] = {}
    for kind in contours:
        table = score_run(
            out, data, contours=kind, search=search if kind == "all" else "levels", processes=processes,
            progress=progress,
        )  # fmt: skip
        save_table(table, out / TABLES[kind])
        found[kind] = localization_scores(table)
    write_json(out / REPORT, describe(out, data, found))
    return found


def describe(out: Path, data: BoxedImages, scores: dict[Contours, LocalizationScores]) -> dict[str, Any]:
    """All measures as JSON has them, shares of 1, and what the maps were made with."""
    record = read_record(out / "maps.json")
    return {
        "data": f"{data.name} {data.split}",
        "images": len(data.samples),
        "maps": None if record is None else record["settings"],
        "threshold_chosen": "the best on these images, for each measure apart",
        "scores": {kind: asdict(one) for kind, one in scores.items()},
    }

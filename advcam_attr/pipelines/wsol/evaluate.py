"""Evaluation of localization maps: best boxes at every threshold, and the measures of Choe et al."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from advcam_attr.data.samples import Box, LocalizationData
from advcam_attr.files import write_bytes, write_json
from advcam_attr.metrics.box_sweep import LEVELS, available, best_ious, best_ious_by_union_find
from advcam_attr.metrics.localization import (
    BoxTable,
    Contours,
    LocalizationScores,
    localization_scores,
    table_of_state,
    table_state,
)
from advcam_attr.pipelines.maps import read_map, read_predictions, wsol_map_store
from advcam_attr.reading import parse_json
from advcam_attr.refine.boxes import boxes_above, grey_levels, largest_box_above, resize_boxes, score_map
from advcam_attr.refine.opencv import opencv
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.runs.provenance import read_record
from advcam_attr.tensor_files import dump_tensors, read_tensors
from advcam_attr.types import AdvCAMError, Sample

#: The report in a run folder, and the table of each kind of contours.
REPORT = "localization.json"
TABLES: dict[Contours, str] = {"all": "boxes_all.safetensors", "largest": "boxes_largest.safetensors"}

#: How best overlaps are found: from contours at every grey level, or by the compiled union-find. Both are exact.
Search = Literal["auto", "levels", "union-find"]

#: Called with the number of scored images and of all.
Progress = Callable[[int, int], None]

#: Returns the map of an image, ``(h, w)``, by id.
MapReader = Callable[[str], Tensor | np.ndarray]

#: Returns scores in [0, 1] of a map.
Prepare = Callable[[Tensor | np.ndarray], np.ndarray]

#: Images per call of a process.
_CHUNK = 32

_Task = tuple[str, Sequence[Box], tuple[int, int]]
_ScoreChunk = Callable[[Sequence[_Task]], tuple[np.ndarray, np.ndarray]]


def evaluate_wsol(
    out: Path,
    data: LocalizationData,
    *,
    contours: Sequence[Contours] = ("all", "largest"),
    search: Search = "auto",
    **options: Any,
) -> dict[Contours, LocalizationScores]:
    """Score the maps of a run, and write ``localization.json`` and the tables of best overlaps.

    Args:
        out: run folder of `advcam_attr.pipelines.maps.make_wsol_maps`.
        data: images, boxes and original sizes.
        contours: ``"all"`` for MaxBoxAccV2, ``"largest"`` for MaxBoxAcc; each is a pass over the maps.
        search: of the contours ``"all"``.
        **options: see `score_boxes`.

    Raises:
        AdvCAMError: maps or predictions are missing, or of predicted classes; else as `score_boxes`.
    """
    found: dict[Contours, LocalizationScores] = {}
    for kind in contours:
        table = score_run(out, data, contours=kind, search=search if kind == "all" else "levels", **options)
        save_table(table, out / TABLES[kind])
        found[kind] = localization_scores(table)
    record = read_record(out / "maps.json")
    report = {
        "data": f"{data.name} {data.split}",
        "images": len(data.samples),
        "maps": None if record is None else record["settings"],
        "threshold_chosen": "the best on these images, for each measure apart",
        "scores": {kind: asdict(one) for kind, one in found.items()},
    }
    write_json(out / REPORT, report)
    return found


def score_run(out: Path, data: LocalizationData, *, contours: Contours = "all", **options: Any) -> BoxTable:
    """Score the boxes of a run's maps; see `score_boxes` and `evaluate_wsol`."""
    store, record = wsol_map_store(out), read_record(out / "maps.json")
    if record is not None and record["settings"].get("target") == "predicted":
        raise AdvCAMError(f"the maps of {out} are of predicted classes: score those of the true classes")
    return score_boxes(partial(read_map, store), data, predictions=read_predictions(out), contours=contours, **options)


def score_boxes(
    read: MapReader,
    data: LocalizationData,
    *,
    samples: Sequence[Sample] | None = None,
    predictions: Mapping[str, int] | None = None,
    contours: Contours = "all",
    search: Search = "auto",
    prepare: Prepare = score_map,
    processes: int = 1,
    progress: Progress = lambda done, total: None,
) -> BoxTable:
    """Score the boxes of maps at every threshold against the true boxes; the table takes 2 kB per image.

    Args:
        read: raw map of an image, ``(h, w)``, by id; picklable for several processes, as ``prepare``.
        data: images, boxes and original sizes.
        samples: a shard of the data's; `advcam_attr.metrics.localization.merge_tables` merges shards.
        predictions: predicted classes by id, for Top-1 measures.
        contours: ``"all"`` for MaxBoxAccV2, ``"largest"`` for MaxBoxAcc.
        search: ``"auto"`` takes the union-find if Numba is installed; the result is the same.
        prepare: from a map to scores in [0, 1]; `advcam_attr.refine.boxes.check_scores` leaves them as they are.
        processes: number of workers.
        progress: called after each chunk of images.

    Raises:
        AdvCAMError: an image lacks a map, boxes, size or prediction; a box lies outside its image.

    Example:
        >>> from types import SimpleNamespace
        >>> from advcam_attr.metrics.localization import localization_scores
        >>> bird = Sample("bird", Path("bird.jpg"), (0,))
        >>> data = SimpleNamespace(samples=(bird,), boxes={"bird": [(20, 20, 60, 60)]}, sizes={"bird": (100, 100)})
        >>> table = score_boxes(lambda id: np.pad(np.ones((4, 4)), (2, 4)), data, search="levels")
        >>> localization_scores(table).max_box_acc
        (1.0, 1.0, 1.0)
    """
    chosen = tuple(data.samples if samples is None else samples)
    if not chosen and samples is None:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    if processes < 1:
        raise AdvCAMError(f"processes must be at least 1, got {processes}")
    score = partial(_score_chunk, read, prepare, _checked_search(search, contours), contours)
    tasks = _tasks(chosen, data)
    correct = _correct(chosen, predictions)
    opencv()
    best, peak = np.empty((len(tasks), LEVELS)), np.empty(len(tasks), np.uint8)
    done = 0
    with progress_bar(len(tasks), "scoring boxes") as bar:
        for ious, peaks in _results(score, tasks, processes):
            end = done + len(peaks)
            best[done:end], peak[done:end] = ious, peaks
            done = end
            bar.update(len(peaks))
            progress(done, len(tasks))
    ids = tuple(sample.id for sample in chosen)
    return BoxTable(ids, torch.from_numpy(best), torch.from_numpy(peak), correct, contours)


def save_table(table: BoxTable, path: Path) -> None:
    """Write a table, or a shard of one, as safetensors; `load_table` reads it."""
    about = {"ids": list(table.ids), "contours": table.contours}
    write_bytes(path, dump_tensors(table_state(table), {"table": json.dumps(about)}))


def load_table(path: Path) -> BoxTable:
    """Read a table that `save_table` wrote."""
    try:
        state, metadata = read_tensors(path)
        about = parse_json(metadata["table"])
        return table_of_state(about["ids"], about["contours"], state)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise AdvCAMError(f"cannot read a table of boxes from {path}: missing, damaged or another file") from error


def _score_chunk(
    read: MapReader, prepare: Prepare, search: Search, contours: Contours, tasks: Sequence[_Task]
) -> tuple[np.ndarray, np.ndarray]:
    """Return best overlaps, ``(n, 255)``, and peaks, ``(n,)``."""
    best, peak = np.zeros((len(tasks), LEVELS)), np.zeros(len(tasks), np.uint8)
    for i, (id, boxes, size) in enumerate(tasks):
        raw = read(id)
        try:
            grey = grey_levels(prepare(raw))
            truth = resize_boxes(boxes, size, (grey.shape[0], grey.shape[1]))
            if search == "union-find":
                best[i] = best_ious_by_union_find(grey, truth)
            else:
                best[i] = best_ious(grey, truth, boxes_above if contours == "all" else largest_box_above)
            peak[i] = grey.max()
        except AdvCAMError as error:
            raise AdvCAMError(f"image {id}: {error}") from error
    return best, peak


def _results(score: _ScoreChunk, tasks: Sequence[_Task], processes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    chunks = [tasks[i : i + _CHUNK] for i in range(0, len(tasks), _CHUNK)]
    if processes == 1 or len(chunks) < 2:
        yield from map(score, chunks)
        return
    pool = ProcessPoolExecutor(min(processes, len(chunks)), get_context("spawn"), initializer=_one_thread)
    try:
        yield from pool.map(score, chunks)
    except BrokenProcessPool as error:
        raise AdvCAMError(
            "a process that scored boxes ended: is memory short? Use fewer processes; a script that starts processes "
            'needs its work under if __name__ == "__main__"'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
    opencv().setNumThreads(1)


def _checked_search(search: Search, contours: Contours) -> Search:
    for name, value, allowed in (("contours", contours, get_args(Contours)), ("search", search, get_args(Search))):
        if value not in allowed:
            raise AdvCAMError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if search == "union-find" and contours == "largest":
        raise AdvCAMError('the union-find finds the boxes of all contours: take search="levels" for the largest')
    if search == "auto":
        return "union-find" if contours == "all" and available() else "levels"
    return search


def _tasks(samples: Iterable[Sample], data: LocalizationData) -> list[_Task]:
    tasks: list[_Task] = []
    for sample in samples:
        if not data.boxes.get(sample.id):
            raise AdvCAMError(f"image {sample.id} has no box: leave it out, or give its boxes")
        if sample.id not in data.sizes:
            raise AdvCAMError(f"the size of image {sample.id} is not known: its boxes cannot be laid over its map")
        tasks.append((sample.id, data.boxes[sample.id], data.sizes[sample.id]))
    return tasks


def _correct(samples: Sequence[Sample], predictions: Mapping[str, int] | None) -> Tensor | None:
    if predictions is None:
        return None
    if without := [sample.id for sample in samples if sample.id not in predictions]:
        raise AdvCAMError(f"predictions of {len(without)} of {len(samples)} images are missing, e.g. of {without[0]}")
    return torch.tensor([predictions[sample.id] in sample.labels for sample in samples], dtype=torch.bool)

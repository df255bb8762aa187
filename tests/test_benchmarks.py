"""The GPU benchmark, in miniature on the CPU."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
#: Compiling takes minutes on a CPU.
SLOW = ["step", "released", "seeds", "segmentation", "boxes"]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "gpu.py"))


@pytest.mark.parametrize("sections", [["equality", "walk"], pytest.param(SLOW, marks=pytest.mark.slow)], ids=len)
def test_sections_of_the_gpu_benchmark(gpu, sections, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    gpu["main"](["--miniature", "--device", "cpu", "--out", str(out), "--only", *sections])
    found = json.loads(out.read_text())["sections"]
    assert list(found) == sections
    for name, section in found.items():
        assert section["rows"], name
        assert not any("failed" in row for row in section["rows"]), (name, section["rows"])
    if "equality" in found:
        assert all(row["greatest difference"] == 0 for row in found["equality"]["rows"] + found["walk"]["rows"])
    assert all(f"### {name}" in capsys.readouterr().out for name in sections[:1])


def test_a_failing_section_leaves_the_others(gpu, monkeypatch, tmp_path):
    def broken(bench):
        yield {"batch": 1}
        raise RuntimeError("no kernel image")

    gpu["SECTIONS"]["crf"] = broken
    bench = gpu["Bench"]("cpu", gpu["MINIATURE"])
    found = gpu["measure"](bench, ["crf", "walk"], 1.0, tmp_path / "gpu.json")
    assert found["sections"]["crf"]["rows"] == [{"batch": 1}, {"failed": "RuntimeError: no kernel image"}]
    assert "failed" in gpu["markdown"](found)
    assert len(found["sections"]["walk"]["rows"]) == 1
    spent = gpu["measure"](bench, ["equality", "walk"], 0.0, None)["sections"]
    assert spent["walk"]["rows"][-1]["skipped"]

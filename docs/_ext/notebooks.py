"""Copies of the notebooks of ``examples/`` as pages under ``docs/examples/`` (not in git)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def _copy(app: Sphinx) -> None:
    pages = Path(app.srcdir) / "examples"
    pages.mkdir(exist_ok=True)
    notebooks = {file.name: file for file in (Path(app.srcdir).parent / "examples").glob("*.ipynb")}
    for page in pages.glob("*.ipynb"):
        if page.name not in notebooks:
            page.unlink()
    for name, notebook in notebooks.items():
        if not (pages / name).exists() or (pages / name).read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, pages / name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""``.. modules:: PACKAGE`` in; a section with the docstrings of each module of the package, whatever they are, out."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles


class _Directive(SphinxDirective):
    def parse(self, lines: list[str]) -> list[nodes.Node]:
        holder = nodes.section()
        holder.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, source=self.env.docname), holder)
        return holder.children


class Modules(_Directive):
    """A section a module; a package's own docstring stands first."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = import_module(self.arguments[0])
        lines = [f".. automodule:: {package.__name__}", "   :no-members:", ""]
        for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
            name = f"{package.__name__}.{found.name}"
            lines += [found.name, "-" * len(found.name), "", f".. automodule:: {name}", ""]
        return self.parse(lines)


class PublicNames(_Directive):
    """What a package's ``__all__`` names, each with the first line of its docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = import_module(self.arguments[0])
        lines = []
        for name in package.__all__:
            it = getattr(package, name)
            first = (it.__doc__ or "").splitlines()[0]
            lines += [f":py:obj:`{name} <{it.__module__}.{it.__qualname__}>`", f"   {first}", ""]
        return self.parse(lines)


def _bars_are_bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write |x| for sizes; in reStructuredText bars would begin a substitution."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...", "|")):
            parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
            lines[i] = "".join(p if p.startswith("`") else re.sub(r"(?<!\\)\|", r"\\|", p) for p in parts)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _bars_are_bars)
    app.add_directive("modules", Modules)
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

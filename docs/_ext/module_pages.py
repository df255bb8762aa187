"""The directives ``modules`` (docstrings of a package, module by module) and ``public-names`` (its ``__all__``)."""

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
    """A section a module, after the package's own docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = import_module(self.arguments[0])
        lines = [f".. automodule:: {package.__name__}", "   :no-members:", ""]
        for found in sorted(pkgutil.walk_packages(package.__path__, f"{package.__name__}."), key=lambda m: m.name):
            title = found.name.removeprefix(f"{package.__name__}.")
            lines += [title, "-" * len(title), "", f".. automodule:: {found.name}", ""]
        return self.parse(lines)


class PublicNames(_Directive):
    """The names of a package's ``__all__``, each with the first line of its docstring."""

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
    """Escape the bars of |x| in docstrings, which would begin a substitution in reStructuredText."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...", "|")):
            parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
            lines[i] = "".join(p if p.startswith("`") else re.sub(r"(?<!\\)\|", r"\\|", p) for p in parts)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _bars_are_bars)
    app.add_directive("modules", Modules)
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Sphinx configuration: Markdown pages, notebooks and docstrings as pages that open offline."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from advcam_attr import __version__

project = "advcam_attr"
author = copyright = "the authors of advcam_attr"
version = release = __version__

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon",
    "cli_reference", "module_pages", "notebooks", "mathml", "offline",
]  # fmt: skip
exclude_patterns = ["_ext"]

html_theme = "furo"
html_title = f"advcam_attr {version}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute the notebooks
nb_ipywidgets_js = {}  # its default asks a CDN

html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # attributes of one name in two classes
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

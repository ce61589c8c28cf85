"""Settings of Sphinx for the documentation site, which dev/build_site.py builds."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "projects/FAMix"))  # documents this checkout, whichever one is installed

project = "FAMix for Detectron2"
copyright = "the authors of FAMix for Detectron2, Apache License 2.0"
version = release = re.findall(r'__version__ = "(.+?)"', (ROOT / "projects/FAMix/famix/__init__.py").read_text())[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode"]
root_doc = "index"
smartquotes_action = "D"  # dashes, but quotes in docstrings and commands are meant
highlight_language = "text"
myst_heading_anchors = 4

# Docstrings use Google style, with `names` in single backticks.
default_role = "code"
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"FAMix {version}"
html_static_path = ["static"]
html_css_files = ["famix.css"]
html_js_files = ["search_offline.js"]
html_favicon = "static/favicon.svg"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1f4e79", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#9cc9f5", "color-brand-content": "#7fb8f0"},
}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return the page that shows the definition of a Python name, for pages in the folder `api/`."""
    if not info["module"]:
        return None
    try:
        found: Any = importlib.import_module(info["module"])
        for name in info["fullname"].split("."):
            found = inspect.unwrap(getattr(found, name))
            found = getattr(found, "fget", found)  # of a property
        file = inspect.getsourcefile(found)
        line = inspect.getsourcelines(found)[1]
    except (AttributeError, TypeError, OSError):  # a constant or a field
        return None
    if file is None or not Path(file).is_relative_to(ROOT):
        return None
    return f"../source/{Path(file).relative_to(ROOT).as_posix()}.html#line-{line}"


def mark_examples(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Mark indented examples of a docstring as code."""
    inside = False
    for number in range(len(lines) - 1, 0, -1):
        inside = lines[number].startswith("    ") or (inside and not lines[number])
        header = next((line for line in reversed(lines[:number]) if line), "")
        if inside and not lines[number - 1] and not header.startswith("    ") and not re.match(r"\w+:$", header):
            lines[number:number] = [".. code-block:: python", ""]
            inside = False


def write_style(app: Any) -> None:
    """Write the style sheet of the pages that show source files."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "monokai"))
    sheet = Path(app.outdir, "_static/source.css")
    sheet.parent.mkdir(parents=True, exist_ok=True)
    layout = (ROOT / "docs/site/source.css").read_text()
    sheet.write_text(f"{layout}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n")


def setup(app: Any) -> None:
    """Connect the functions above to Sphinx."""
    app.connect("autodoc-process-docstring", mark_examples, priority=400)  # before Google style is parsed
    app.connect("builder-inited", write_style)

#!/usr/bin/env python
"""Build the documentation site from the Markdown pages and docstrings of the repository. `make docs` runs this script.

    dev/build_site.py --output build/site

`docs/site/pages.yaml` lists the pages. Their links stay as they are in the repository: this script copies each page to a
folder for Sphinx, points links between pages to the site, and gives each linked file of the repository a page that shows
it. Every warning is an error, such as a missing page, anchor or Python name. Exit status: 0, or 1 after a warning.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs/site"
STAGED = ROOT / "build/site-source"
HOME, HOME_FILE = "index", "README.md"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
SOURCE = re.compile(r'href="(?:\.\./)*source/([^"#]+)\.html')
NOTEBOOK = ".ipynb"
PICTURES = {".png", ".svg"}
SHOWN = {".py", ".yaml", ".txt", ".json", ".html", ".sbatch"}  # files of a linked folder
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<link rel="stylesheet" href="{up}_static/source.css">
<link rel="icon" href="{up}_static/favicon.svg">
<p><a href="{up}index.html">FAMix for Detectron2</a> / {name}</p>
{content}
</html>
"""


def read_sections() -> dict[str, dict[str, tuple[str, Path]]]:
    """Return the sections of `pages.yaml`: name -> address of each page -> title and file."""
    sections = yaml.safe_load((SITE / "pages.yaml").read_text())
    return {
        section: {address: (title, ROOT / file) for address, (title, file) in pages.items()}
        for section, pages in sections.items()
    }


def stage_site(folder: Path) -> None:
    """Write all pages to a folder that Sphinx can build.

    Raises:
        ValueError: a page or the target of a link does not exist.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages, contents = {HOME: ROOT / HOME_FILE}, ""
    for section, entries in read_sections().items():
        lines = "".join(f"{title} <{address}>\n" for address, (title, _) in entries.items())
        contents += f"\n```{{toctree}}\n:hidden:\n:caption: {section}\n\n{lines}```\n"
        pages.update((address, file) for address, (_, file) in entries.items())
    missing = [str(file.relative_to(ROOT)) for file in pages.values() if not file.is_file()]
    if missing:
        raise ValueError(f"docs/site/pages.yaml names files that do not exist: {', '.join(missing)}")
    addresses = {path: address for address, path in pages.items()}
    for address, path in pages.items():
        page = folder / f"{address}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == NOTEBOOK:
            text = convert_notebook(path, page.parent)
        else:
            text = rewrite_links(path, address, addresses, folder)
        page.write_text(text + contents if address == HOME else text)


def convert_notebook(path: Path, folder: Path) -> str:
    """Return a notebook with its outputs as Markdown, and write its images to a folder."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(path))
    for name, content in resources["outputs"].items():
        (folder / name).write_bytes(content)
    return str(text)


def rewrite_links(path: Path, address: str, addresses: dict[Path, str], folder: Path) -> str:
    """Return the text of a page with links that work on the site, and copy its pictures.

    Args:
        path: file of the page.
        address: address of the page on the site, without suffix.
        addresses: file of each page -> its address.
        folder: receives the pictures.

    Raises:
        ValueError: the target of a link does not exist.
    """

    def rewrite(match: re.Match[str]) -> str:
        text, link = match.groups()
        target, _, anchor = link.partition("#")
        if "://" in link or not target:
            return match[0]
        linked = Path(os.path.normpath(path.parent / target))
        if not linked.exists() or not linked.is_relative_to(ROOT):
            raise ValueError(f"{path.relative_to(ROOT)} links to '{link}', which does not exist")
        place = linked.relative_to(ROOT).as_posix()
        if linked in addresses:
            place = f"{addresses[linked]}.md" + (f"#{anchor}" if anchor else "")
        elif linked.suffix in PICTURES:
            copy = folder / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(linked, copy)
        else:
            return f'<a href="{os.path.relpath(f"source/{place}.html", Path(address).parent)}">{text}</a>'
        return f"[{text}]({os.path.relpath(place, Path(address).parent)})"

    return LINK.sub(rewrite, path.read_text())


def show_files(site: Path) -> None:
    """Add a page for each file and folder of the repository that a page of the site links to."""
    todo = {name for page in site.rglob("*.html") for name in SOURCE.findall(page.read_text())}
    done: set[str] = set()
    while todo:
        name = todo.pop()
        done.add(name)
        path, page = ROOT / name, site / f"source/{name}.html"
        if path.is_dir():
            files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix in SHOWN)
            todo.update({f"{name}/{file}" for file in files} - done)
            links = (f'<li><a href="{path.name}/{file}.html">{file}</a></li>' for file in files)
            content = f"<ul>{''.join(links)}</ul>"
        else:
            content = highlight_file(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(Path(name).parts))
        page.write_text(PAGE.format(name=escape(name), up=up, content=content))


def highlight_file(path: Path) -> str:
    """Return a text file as HTML, with an anchor `line-N` at each line."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TextLexer, get_lexer_for_filename
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_for_filename("job.sh" if path.suffix == ".sbatch" else path.name)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(path.read_text(), lexer, HtmlFormatter(lineanchors="line", wrapcode=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build/site", help="folder of the site; replaced")
    site = parser.parse_args(argv).output.resolve()
    from sphinx.cmd.build import main as run_sphinx

    try:
        stage_site(STAGED)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    shutil.rmtree(site, ignore_errors=True)
    options = ["--fail-on-warning", "--quiet", "--fresh-env", "--write-all", "--conf-dir", str(SITE)]
    if run_sphinx([*options, "--doctree-dir", str(ROOT / "build/site-doctrees"), str(STAGED), str(site)]):
        return 1
    show_files(site)
    sys.stdout.write(f"The site is in {site}/index.html\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

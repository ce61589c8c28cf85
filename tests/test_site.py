"""The documentation site has all pages, its links are rewritten, and its API reference covers all public names."""

import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import famix
from run_factory import ROOT, load_script

PAGES = """
Use:
  data: [Data, datasets/README.md]
  api/styles: [Styles, docs/api/styles.md]
"""
STYLES = """# Styles
[data](../../datasets/README.md#own-data), [a
file](../../setup.cfg), [`folder`](../site), ![figure](../flow.svg), [paper](https://example.org/a), [below](#below)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the builder of a repository with three pages."""
    files = {
        "README.md": "# Home\n[data](datasets/README.md)\n",
        "datasets/README.md": "# Data\n[home](../README.md)\n",
        "docs/api/styles.md": STYLES,
        "docs/site/pages.yaml": PAGES,
        "docs/flow.svg": "<svg/>",
        "setup.cfg": "[metadata]\nname = a <b>\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    builder = load_script(ROOT / "dev/build_site.py")
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    monkeypatch.setattr(builder, "SITE", tmp_path / "docs/site")
    return builder


def test_links_lead_to_pages_of_the_site(site: ModuleType, tmp_path: Path) -> None:
    staged = tmp_path / "build"
    site.stage_site(staged)
    assert "[data](data.md)" in (staged / "index.md").read_text()
    assert "[home](index.md)" in (staged / "data.md").read_text()
    text = (staged / "api/styles.md").read_text()
    assert "[data](../data.md#own-data)" in text
    assert '<a href="../source/setup.cfg.html">a\nfile</a>' in text
    assert '<a href="../source/docs/site.html">`folder`</a>' in text
    assert "![figure](../docs/flow.svg)" in text and (staged / "docs/flow.svg").read_text() == "<svg/>"
    assert "[paper](https://example.org/a)" in text and "[below](#below)" in text


def test_linked_files_and_folders_get_pages(site: ModuleType, tmp_path: Path) -> None:
    built = tmp_path / "built"
    (built / "api").mkdir(parents=True)
    links = ('<a href="../source/setup.cfg.html#line-2">', '<a href="../source/docs/site.html">')
    (built / "api/styles.html").write_text("".join(links))
    site.show_files(built)
    shown = (built / "source/setup.cfg.html").read_text()
    assert "a &lt;b&gt;" in re.sub(r"</?span[^>]*>", "", shown) and 'name="line-2"' in shown
    assert 'href="../_static/source.css"' in shown
    assert 'href="site/pages.yaml.html"' in (built / "source/docs/site.html").read_text()
    assert 'href="../../../_static/source.css"' in (built / "source/docs/site/pages.yaml.html").read_text()


@pytest.mark.parametrize("broken", ["datasets/README.md", "docs/api/styles.md"])
def test_missing_pages_and_broken_links_are_errors(site: ModuleType, tmp_path: Path, broken: str) -> None:
    (tmp_path / broken).unlink()
    with pytest.raises(ValueError, match=broken):
        site.stage_site(tmp_path / "build")
    (tmp_path / broken).write_text("[gone](gone.md)")
    with pytest.raises(ValueError, match=r"gone\.md"):
        site.stage_site(tmp_path / "build")


def test_every_document_is_a_page(tmp_path: Path) -> None:
    builder = load_script(ROOT / "dev/build_site.py")
    builder.stage_site(tmp_path)
    pages = {path for entries in builder.read_sections().values() for _, path in entries.values()}
    folders = ("docs", "docs/api", "benchmarks/results")
    assert {path for folder in folders for path in (ROOT / folder).glob("*.md")} <= pages


def test_the_reference_documents_all_public_names() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    documented = re.findall(r"^\.\. auto\w+:: (\S+)$", text, flags=re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert not {f"famix.{name}" for name in famix.__all__} - set(documented)
    for name in documented:
        assert pkgutil.resolve_name(name).__doc__, name

"""Parser of HTML pages for tests."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "input", "br", "hr", "link", "wbr"}
_SVG_VOID = {"circle", "path", "g"}


class Page(HTMLParser):
    """Parses a page into cells by table and row, image sources and addresses, and records tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []  # of images
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.values: list[str] = []  # of attributes
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.sources += [values["src"]] if tag == "img" and "src" in values else []
        self.addresses += [values[name] for name in ("src", "href", "xlink:href", "action", "data") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        self.values += [value for name, value in values.items() if name != "src"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.values += [value or "" for _, value in attrs]
        if tag not in _VOID | _SVG_VOID:
            self.problems.append(f"<{tag}/> closes itself")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes something else, at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self._open and "script" not in self._open:
            self.text += data
            if "td" in self._open or "th" in self._open:
                self.tables[-1][-1][-1] += data

    def column(self, heading: str, table: int = 0) -> dict[str, str]:
        """First cell of every row of a table -> the cell below a heading."""
        head, *rows = self.tables[table]
        return {row[0]: row[head.index(heading)] for row in rows}


def assert_sound(html: str) -> Page:
    """Parse a page that must be well-formed and self-contained; returns it."""
    page = Page(html)
    assert page.problems == []
    assert all(source.startswith("data:image/") for source in page.sources)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "url(" not in html and "@import" not in html
    assert len(set(page.ids)) == len(page.ids)
    assert '<meta name="viewport"' in html and "prefers-color-scheme: dark" in html
    assert not re.search(r"\bnan\b", "\n".join([page.text, *page.values]))
    return page

#!/usr/bin/env python
"""Open HTML pages in headless Chromium and report their defects.

    dev/browser_check.py output/report.html --expect "mIoU" --screenshots output/shots

A page fails if it logs an error or a warning, requests anything outside itself, is wider than the screen, has a table whose
columns cannot be reached by scrolling, shows a broken image, or lacks an expected text. Exit status: 0 if all pages
pass, 1 if a page fails, 3 if Playwright or a browser is missing.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BAD_PAGE, NO_BROWSER = 1, 3

FACTS = """(() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const cut = [...document.querySelectorAll("table")].filter((table) => {
    let box = table.parentElement;
    while (box.parentElement && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) box = box.parentElement;
    const outside = (left) => {
      box.scrollLeft = left;
      const frame = box.parentElement ? box.getBoundingClientRect() : {left: 0, right: document.documentElement.clientWidth};
      return left ? table.getBoundingClientRect().right > frame.right + 1 : table.getBoundingClientRect().left < frame.left - 1;
    };
    const cells = [...table.querySelectorAll("td, th")].some((cell) => cell.scrollWidth > cell.clientWidth + 1);
    return outside(1e6) || outside(0) || cells;
  });
  return {
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: cut.map((table) => table.textContent.trim().slice(0, 40)),
    broken: [...document.images].filter((image) => !(image.complete && image.naturalWidth)).length,
    text: document.body.textContent,
  };
})()"""


@dataclass(frozen=True)
class View:
    """Screen and its size in CSS pixels."""

    name: str
    width: int
    height: int
    mobile: bool = False
    dark: bool = False


VIEWS = (View("desktop", 1280, 900), View("phone", 390, 844, mobile=True), View("dark", 1280, 900, dark=True))


def find_browser() -> str | None:
    """Return the path of an installed Chromium or of Playwright's, or None if there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    installed = next((path for path in map(shutil.which, NAMES) if path), None)
    if installed is not None:
        return installed
    with sync_playwright() as playwright:
        downloaded = playwright.chromium.executable_path
    return downloaded if Path(downloaded).is_file() else None


@contextmanager
def browser(executable: str) -> Iterator["Browser"]:
    """Start a browser and close it at the end of the context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield started
        finally:
            started.close()


def look_at(
    started: "Browser", page: Path, view: View, expected: Sequence[str] = (), screenshot: Path | None = None
) -> list[str]:
    """Return the problems of an HTML page on a screen. The page must contain all `expected` texts."""
    context = started.new_context(
        viewport={"width": view.width, "height": view.height},
        is_mobile=view.mobile,
        color_scheme="dark" if view.dark else "light",
    )
    problems: list[str] = []
    address = page.resolve().as_uri()

    def note_request(url: str) -> None:
        if url != address and not url.startswith(("data:", "about:")):
            problems.append(f"requests {url}")

    tab = context.new_page()
    tab.on("pageerror", lambda error: problems.append(f"raises {error.name}: {error.message}"))
    tab.on(
        "console",
        lambda message: problems.append(f"logs {message.text}") if message.type in ("error", "warning") else None,
    )
    tab.on("request", lambda request: note_request(request.url))
    tab.goto(address, wait_until="load")
    if screenshot is not None:
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=screenshot, full_page=True)
    facts: dict[str, Any] = tab.evaluate(FACTS)
    context.close()
    if facts["wider"] > 0:
        problems.append(f"is {facts['wider']} pixels wider than the {view.name}'s {view.width}")
    problems += [f"cuts off columns of the table '{start}'" for start in facts["cut"]]
    if facts["broken"]:
        problems.append(f"has {facts['broken']} broken images")
    problems += [f"lacks the text {text!r}" for text in expected if text not in facts["text"]]
    return problems


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="HTML file")
    parser.add_argument("--expect", action="append", default=[], metavar="TEXT", help="text that every page must show")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="folder for one PNG per page and screen")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = make_parser().parse_args(argv)
    missing = [str(page) for page in arguments.pages if not page.is_file()]
    if missing:
        sys.stderr.write(f"error: page not found: {', '.join(missing)}\n")
        return BAD_PAGE
    executable = find_browser()
    if executable is None:
        sys.stderr.write(
            "error: Playwright or Chromium is not installed. Run make setup, and apt-get install chromium on Debian or "
            "playwright install chromium elsewhere.\n"
        )
        return NO_BROWSER
    found = []
    with browser(executable) as started:
        for page in arguments.pages:
            for view in VIEWS:
                folder = arguments.screenshots
                file = folder and folder / f"{page.stem}_{view.name}.png"
                problems = look_at(started, page, view, arguments.expect, file)
                found += [f"{page} ({view.name}): {problem}" for problem in problems]
    sys.stdout.write("".join(f"{problem}\n" for problem in found) or f"{len(arguments.pages)} pages are good\n")
    return BAD_PAGE if found else 0


if __name__ == "__main__":
    sys.exit(main())

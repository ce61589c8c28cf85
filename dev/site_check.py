#!/usr/bin/env python
"""Open the built documentation site in headless Chromium and report its defects. `make docs` runs this script.

    dev/site_check.py build/site

The home page, a page with tables, an API page, a shown source file and a search are opened from the disk on a desktop and
a phone. A page fails if it logs an error, requests anything outside the site, is wider than the screen, shows a broken
image, or the search finds nothing. Exit status: 0 if all pages pass, 1 if a page fails, 3 if Playwright or a browser is
missing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from browser_check import BAD_PAGE, NO_BROWSER, VIEWS, View, browser, find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

PAGES = ("index.html", "protocols.html", "concepts.html", "api/styles.html", "source/LICENSE.html")
WORDS = "style bank"
FACTS = """() => ({
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  broken: [...document.images].filter((image) => image.complete && !image.naturalWidth).length,
})"""


def look_at_site(started: "Browser", site: Path, view: View, screenshots: Path | None = None) -> list[str]:
    """Return the problems of the site on a screen, and save a screenshot of each page if a folder is given."""
    context = started.new_context(
        viewport={"width": view.width, "height": view.height},
        is_mobile=view.mobile,
        color_scheme="dark" if view.dark else "light",
    )
    tab, root, problems = context.new_page(), site.resolve().as_uri(), []
    tab.on("pageerror", lambda error: problems.append(f"{tab.url} raises {error.message}"))
    tab.on("console", lambda line: problems.append(f"{tab.url} logs {line.text}") if line.type == "error" else None)

    def note_failure(request: "Request") -> None:
        if request.failure != "net::ERR_ABORTED":  # by the next page
            problems.append(f"{tab.url} lacks {request.url}")

    def note_request(request: "Request") -> None:
        if not request.url.startswith((root, "data:")):
            problems.append(f"{tab.url} requests {request.url}")

    tab.on("requestfailed", note_failure)
    tab.on("request", note_request)
    for name in PAGES:
        tab.goto(f"{root}/{name}", wait_until="load")
        facts = tab.evaluate(FACTS)
        if facts["wider"] > 0:
            problems.append(f"{name} is {facts['wider']} pixels wider than the {view.name}'s {view.width}")
        if facts["broken"]:
            problems.append(f"{name} has {facts['broken']} broken images")
        if screenshots is not None:
            tab.screenshot(path=screenshots / f"{Path(name).stem}_{view.name}.png")
    problems += search(tab, root, view)
    if screenshots is not None:
        tab.screenshot(path=screenshots / f"search_{view.name}.png")
    context.close()
    return problems


def search(tab: "Page", root: str, view: View) -> list[str]:
    """Search from the home page and return the problem, if any. Leaves the tab at the results."""
    from playwright.sync_api import TimeoutError as NothingFound

    tab.goto(f"{root}/index.html", wait_until="load")
    if view.mobile:
        tab.locator(".mobile-header label[for='__navigation']").first.click()
    box = tab.locator("input.sidebar-search")
    box.fill(WORDS)
    box.press("Enter")
    try:
        tab.wait_for_selector("ul.search li a", timeout=20_000)
    except NothingFound:
        return [f"the search for '{WORDS}' finds nothing on the {view.name}"]
    return []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder of the built site")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="folder for one PNG per page and screen")
    arguments = parser.parse_args(argv)
    executable = find_browser()
    if executable is None:
        sys.stderr.write("The site was not opened in a browser, because Playwright or Chromium is not installed.\n")
        return NO_BROWSER
    if arguments.screenshots is not None:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    with browser(executable) as started:
        found = [
            problem for view in VIEWS for problem in look_at_site(started, arguments.site, view, arguments.screenshots)
        ]
    sys.stdout.write("".join(f"{problem}\n" for problem in found) or "The site is good on all screens\n")
    return BAD_PAGE if found else 0


if __name__ == "__main__":
    sys.exit(main())

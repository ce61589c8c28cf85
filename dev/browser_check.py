#!/usr/bin/env python
"""Open HTML pages in a headless Chromium and look for what a reader must never meet.

    dev/browser_check.py output/report.html --expect "mIoU" --screenshots output/shots

A page fails if it logs an error or a warning, asks for anything outside of itself, is wider than a phone's screen, shows
a broken image, or lacks an expected text. Exit status: 0 all pages are good, 1 one is not, 3 there is no Chromium.
"""

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BAD_PAGE, NO_BROWSER = 1, 3
SECONDS = 60.0  # for an answer of the browser
_SETTLE = 0.2  # seconds for messages that come late

FACTS = """(() => ({
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  broken: [...document.images].filter((image) => !(image.complete && image.naturalWidth)).length,
  tables: [...document.querySelectorAll("table")].map((table) =>
    [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()))),
  text: document.body.textContent,
}))()"""


class BrowserError(Exception):
    """The browser cannot be started, or gives no answer."""


@dataclass(frozen=True)
class View:
    """A screen.

    Attributes:
        name: for the screenshot.
        width, height: in pixels of the style sheet.
        mobile: a phone, which scales pages that do not say how wide they are.
        dark: what the reader prefers.
    """

    name: str
    width: int
    height: int
    mobile: bool = False
    dark: bool = False


VIEWS = (
    View("desktop", 1280, 900),
    View("phone", 390, 844, mobile=True),
    View("dark", 1280, 900, dark=True),
)


@dataclass(frozen=True)
class Seen:
    """What the browser found on a page.

    Attributes:
        problems: sentences.
        tables: texts of all cells, table by table, row by row.
        picture: PNG of the whole page, if one was wanted.
    """

    problems: tuple[str, ...]
    tables: tuple[tuple[tuple[str, ...], ...], ...]
    picture: bytes | None


class Browser:
    """A headless Chromium, spoken to in its DevTools protocol through a pair of pipes."""

    def __init__(self, process: "subprocess.Popen[bytes]", to_browser: int, from_browser: int) -> None:
        self._process = process
        self._write, self._read = to_browser, from_browser
        self._buffer, self._number = b"", 0
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def open_tab(self) -> None:
        """Open the tab that all pages are shown in."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for answer in self._messages(SECONDS):
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                return dict(answer["result"])
            self.events.append(answer)
        raise BrowserError(f"no answer to {method} within {SECONDS:.0f} s")

    def wait_for(self, event: str) -> None:
        """Wait until an event has come since the events were last cleared."""
        if any(message.get("method") == event for message in self.events):
            return
        for message in self._messages(SECONDS):
            self.events.append(message)
            if message.get("method") == event:
                return
        raise BrowserError(f"no {event} within {SECONDS:.0f} s")

    def settle(self) -> None:
        """Collect what comes late."""
        self.events += list(self._messages(_SETTLE))

    def _messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Messages as they come, until nothing comes for so long in all."""
        end = time.monotonic() + seconds
        while True:
            while b"\0" in self._buffer:
                line, self._buffer = self._buffer.split(b"\0", 1)
                yield json.loads(line)
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise BrowserError(f"the browser ended with status {self._process.wait()}")
            self._buffer += piece


def find_browser() -> str | None:
    """Path of a Chromium, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def browser(executable: str) -> Iterator[Browser]:
    """Start a browser with a profile of its own, and end it."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # Its helper processes may still write to the profile when it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            # The protocol's pipes are the file descriptors 3 and 4, wherever ours are.
            ["bash", "-c", f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}', executable,
             "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser[0], from_browser[1]), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            started = Browser(process, to_browser[1], from_browser[0])
            started.open_tab()
            yield started
        finally:
            process.terminate()
            process.wait()
            os.close(to_browser[1])
            os.close(from_browser[0])


def look_at(started: Browser, page: Path, view: View, expected: Sequence[str] = (), with_picture: bool = False) -> Seen:
    """Show a page on a screen and report what is wrong with it.

    Args:
        started: the browser.
        page: HTML file.
        view: the screen.
        expected: texts that must be somewhere on the page.
        with_picture: also take a picture.
    """
    screen = {"width": view.width, "height": view.height, "deviceScaleFactor": 1, "mobile": view.mobile}
    started.call("Emulation.setDeviceMetricsOverride", **screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if view.dark else "light"}
    started.call("Emulation.setEmulatedMedia", features=[scheme])
    started.events.clear()
    address = page.resolve().as_uri()
    started.call("Page.navigate", url=address)
    started.wait_for("Page.loadEventFired")
    started.settle()
    facts = started.call("Runtime.evaluate", expression=FACTS, returnByValue=True)["result"]["value"]
    problems = [problem for event in started.events if (problem := _problem(event, address))]
    if facts["wider"] > 0:
        problems.append(f"is {facts['wider']} pixels wider than the {view.name}'s {view.width}")
    if facts["broken"]:
        problems.append(f"has {facts['broken']} broken images")
    problems += [f"lacks the text {text!r}" for text in expected if text not in facts["text"]]
    picture = None
    if with_picture:
        shot = started.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        picture = base64.b64decode(shot["data"])
    tables = tuple(tuple(map(tuple, rows)) for rows in facts["tables"])
    return Seen(tuple(problems), tables, picture)


def _problem(event: dict[str, Any], address: str) -> str:
    """What an event of the browser says that is wrong; "" for all others."""
    method, parameters = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return f"raises {parameters['exceptionDetails'].get('exception', {}).get('description', 'an exception')}"
    if method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
        return f"logs {' '.join(str(one.get('value', one.get('description'))) for one in parameters['args'])}"
    if method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
        return f"logs {parameters['entry']['text']}"
    if method == "Network.requestWillBeSent":
        url = parameters["request"]["url"]
        if url != address and not url.startswith(("data:", "about:")):
            return f"asks for {url}"
    return ""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="HTML file")
    parser.add_argument("--expect", action="append", default=[], metavar="TEXT", help="that every page must show")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="for pictures of every page on every screen")
    return parser


def check(executable: str, arguments: argparse.Namespace) -> list[str]:
    """Look at all pages on all screens; returns what is wrong."""
    found = []
    with browser(executable) as started:
        for page in arguments.pages:
            for view in VIEWS:
                seen = look_at(started, page, view, arguments.expect, arguments.screenshots is not None)
                found += [f"{page} ({view.name}): {problem}" for problem in seen.problems]
                if seen.picture is not None:
                    arguments.screenshots.mkdir(parents=True, exist_ok=True)
                    (arguments.screenshots / f"{page.stem}_{view.name}.png").write_bytes(seen.picture)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    missing = [str(page) for page in arguments.pages if not page.is_file()]
    if missing:
        sys.stderr.write(f"error: {', '.join(missing)} does not exist\n")
        return BAD_PAGE
    executable = find_browser()
    if executable is None:
        sys.stderr.write(f"error: none of {', '.join(NAMES)} is installed; on Debian: apt-get install chromium\n")
        return NO_BROWSER
    found = check(executable, arguments)
    sys.stdout.write("".join(f"{problem}\n" for problem in found) or f"{len(arguments.pages)} pages are good\n")
    return BAD_PAGE if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""The page in headless Chromium, at the widths of a desktop and a phone, and its address."""

import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.app_factory import make_networks, write_picture
from data_factory import forgotten_datasets
from error_matching import expect_error
from famix.utils.errors import ConfigError
from famix_app.comparison import CLASSES
from famix_app.networks import Network
from famix_app.session import Session
from run_factory import ROOT, load_script

sys.path.insert(0, str(ROOT / "dev"))

LEFT, RIGHT = "plain/run", "styled/run"
TIMEOUT = 60_000  # milliseconds, for busy machines


@dataclass
class Served:
    """A running page."""

    address: str
    networks: list[Network]
    cache: Path


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    return load_script(ROOT / "dev/browser_check.py", "browser_check")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, cache = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        from famix_app.page import build_page, launch_page

        networks = make_networks(folder)
        networks[0].predictor.max_pixels = 300 * 400
        blocks = build_page(networks, cache)
        yield Served(launch_page(blocks, "127.0.0.1", None), networks, cache)
        blocks.close()


@dataclass
class Visit:
    """A tab of the browser, and everything that must not happen in it."""

    page: Any
    served: Served
    problems: list[str] = field(default_factory=list)

    def watch(self) -> None:
        def note_request(request: Any) -> None:
            if not request.url.startswith((self.served.address, "data:", "blob:")):
                self.problems.append(f"requests {request.url}")

        def note_line(line: Any) -> None:
            if line.type == "error":
                self.problems.append(f"logs {line.text}")

        def note_failure(request: Any) -> None:
            if request.failure != "net::ERR_ABORTED":  # by the page itself
                self.problems.append(f"lacks {request.url}")

        self.page.on("request", note_request)
        self.page.on("console", note_line)
        self.page.on("pageerror", lambda error: self.problems.append(f"raises {error.message}"))
        self.page.on("requestfailed", note_failure)

    def wait(self, condition: str, argument: Any = None) -> None:
        self.page.wait_for_function(condition, arg=argument, timeout=TIMEOUT)

    def wait_for_text(self, place: str, text: str) -> None:
        self.wait(
            "([place, text]) => document.querySelector(place)?.innerText.replace(/\\s+/g, ' ').includes(text)",
            [place, text],
        )

    def choose(self, place: str, option: str) -> None:
        self.page.locator(f"{place} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def point(self, row: float, column: float) -> None:
        """Point at a pixel, given as shares of height and width."""
        image = self.page.locator("#slider img").first
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        self.page.mouse.move(box["x"] + column * box["width"], box["y"] + row * box["height"])

    def wait_for_number(self, place: str, number: int) -> None:
        self.wait("([place, number]) => document.querySelectorAll(place).length === number", [place, number])


@pytest.fixture(scope="module")
def chromium(checker: ModuleType) -> Iterator[Any]:
    executable = checker.find_browser()
    if executable is None:
        pytest.skip("Playwright or Chromium is not installed: the page was not opened in a browser")
    with checker.browser(executable) as started:
        yield started


@pytest.fixture(scope="module", params=["desktop", "phone"])
def visit(chromium: Any, checker: ModuleType, served: Served, request: pytest.FixtureRequest) -> Iterator[Visit]:
    view = next(view for view in checker.VIEWS if view.name == request.param)
    context = chromium.new_context(
        viewport={"width": view.width, "height": view.height},
        is_mobile=view.mobile,
        color_scheme="dark" if view.dark else "light",
    )
    visit = Visit(context.new_page(), served)
    visit.watch()
    visit.page.goto(served.address)
    visit.wait("() => document.querySelector('#slider img')?.naturalWidth > 0")
    yield visit
    wider = visit.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert wider <= 0 and not visit.problems


def test_refused_files_and_words_are_reported(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    (tmp_path / "notes.txt").write_text("no picture")
    broken = write_picture(tmp_path / "broken.png")
    broken.write_bytes(broken.read_bytes()[:2000])
    write_picture(tmp_path / "large.png", 400, 301)
    write_picture(tmp_path / "small.png", 20, 20)
    bad = [str(tmp_path / name) for name in ("notes.txt", "broken.png", "large.png", "small.png")]
    page.set_input_files("#files input[type=file]", bad)
    for text in ("notes.txt", "broken.png", "large.png", "INPUT.MAX_PIXELS", "small.png", "20 x 20"):
        visit.wait_for_text(".toast-wrap", text)
    assert str(visit.served.cache) not in page.locator(".toast-wrap").inner_text()
    page.evaluate("document.querySelectorAll('.toast-wrap button').forEach((button) => button.click())")
    visit.wait("() => !document.querySelector('.toast-body')")
    page.locator("#restyle").click()
    visit.wait_for_text(".toast-wrap", "Style words")
    page.evaluate("document.querySelectorAll('.toast-wrap button').forEach((button) => button.click())")
    assert page.locator("#pictures img").count() == 1 and "night" in page.locator("#sides").inner_text()  # of the town
    for condition in ("fog", "night"):
        visit.choose("#condition", condition)
        visit.wait_for_text("#sides", condition)
    visit.wait_for_number("#pictures img", 2)


def test_a_user_compares_restyles_and_downloads(visit: Visit, tmp_path: Path) -> None:
    page, (plain, styled) = visit.page, visit.served.networks
    before = page.locator("#pictures img").count()
    street = write_picture(tmp_path / "street.png", 96, 160, seed=3)
    page.set_input_files("#files input[type=file]", [str(write_picture(tmp_path / "other.png")), str(street)])
    visit.wait_for_text("#sides", "street.png")
    visit.wait_for_number("#pictures img", before + 2)

    # Classes and confidences under the pointer are those of the networks.
    predictions = [network.predictor(street) for network in (plain, styled)]
    visit.wait("() => document.querySelector('#slider img').naturalWidth === 160")
    for row, column in ((48, 40), (20, 140)):
        visit.point((row + 0.5) / 96, (column + 0.5) / 160)
        for name, prediction in zip((LEFT, RIGHT), predictions, strict=True):
            share = np.float32(np.rint(255 * prediction.confidence[row, column]) / 2.55)
            label = prediction.class_names[prediction.labels[row, column]]
            visit.wait_for_text("#pointer", f"{label} {share:.0f} % ({name})")

    # The other view, other sides, and the first picture again.
    page.locator("#view").get_by_label("Not sure").check()
    visit.wait_for_text("#legend", "not sure")
    visit.choose("#left", "Picture")
    visit.wait_for_text("#sides", "Picture")
    visit.wait_for_text("#sides", "Picture")
    visit.wait("name => !document.querySelector('#pointer').innerText.includes(name)", LEFT)
    page.locator("#view").get_by_label("Classes").check()
    visit.choose("#left", LEFT)
    visit.wait_for_text("#sides", LEFT)

    # Style words.
    page.locator("#words input, #words textarea").fill("foggy, night")
    page.locator("#restyle").click()
    visit.wait_for_number("#restyled img", 3)
    assert "changed" in page.locator("#restyled").inner_text()
    page.locator("#restyled button").nth(1).click()
    visit.wait_for_text("#sides", "foggy")
    page.locator("#restyled button").nth(0).click()
    visit.wait_for_text("#sides", "street.png")

    # Files.
    page.locator("#download").click()
    visit.wait_for_number("#made a[download]", 4)
    with page.expect_download(timeout=TIMEOUT) as download:
        page.locator("#made a[download]").nth(0).click()
    assert download.value.suggested_filename == "street_png_plain_run_labels.png"
    np.testing.assert_array_equal(np.asarray(Image.open(download.value.path())), predictions[0].labels)


def test_files_that_arrive_during_a_prediction_are_kept(served: Served, tmp_path: Path) -> None:
    from famix_app.handlers import Page

    page, session = Page(served.networks, served.cache), Session()
    for name in ("a.png", "b.png"):
        assert page.receive(session, [str(write_picture(tmp_path / name))])[1] is None
    page.upload(session, LEFT, RIGHT, CLASSES)
    page.upload(session, LEFT, RIGHT, CLASSES)  # of the second event
    assert [picture.name for picture in session.pictures] == ["a.png", "b.png"] and not session.uploads


def test_page_listens_on_this_machine_only_and_shares_nothing(served: Served) -> None:
    from famix_app.page import build_page, launch_page

    assert served.address.startswith("http://127.0.0.1:")
    port = int(served.address.rstrip("/").rpartition(":")[2])
    with forgotten_datasets(), expect_error(ConfigError, "--port", port):
        launch_page(build_page(served.networks, served.cache), "127.0.0.1", port)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", port)) != 0  # another address of this machine


def test_page_is_not_an_open_interface(served: Served) -> None:
    """No function can be called through Gradio's clients, and no other file of the machine can be read."""
    from urllib.error import HTTPError
    from urllib.request import urlopen

    with pytest.raises(HTTPError) as refused:
        urlopen(f"{served.address}gradio_api/file={served.networks[0].loaded.checkpoint}")
    assert refused.value.code == 403

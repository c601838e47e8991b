"""The pages in a real browser: they load, say nothing on its console, and fit a telephone."""

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from tests.console.conftest import Home
from tests.console.test_challenger_reading import told as detector_told
from tests.console.test_challenger_reading import write as write_challenger

from vitok.console.pages import routes
from vitok.serving import handlers, running

SCRIPT = Path(__file__).parents[2] / "docs" / "take_screenshots.py"
PAGES = (
    "/",
    "/decisions",
    "/features",
    "/features/customer",
    "/models",
    "/models/1",
    "/drift",
    "/drift?days=2&against=healthy",
    "/calibration",
    "/estimates",
    "/detectors",
    "/outcomes",
    "/alerts",
    "/incidents",
    "/incidents/incident-0001",
    "/runs",
    "/releases",
    "/costs",
    "/costs?by=team",
)
PNG = b"\x89PNG\r\n\x1a\n"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("take_screenshots", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> Any:
    return load()


@pytest.fixture(scope="module")
def browser(tool: Any) -> Iterator[Any]:
    program = tool.find_browser()
    if program is None:
        pytest.skip("neither chromium nor google-chrome is on the PATH")
    with tool.Browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("browser") / "home"
    shutil.copytree(home.folder, folder)
    losses = np.random.default_rng(3).beta(1, 60, 3_000)
    write_challenger(folder, detector_told(losses), seen=len(losses))
    app = Starlette(routes=routes(folder), exception_handlers=handlers())
    with running(app) as served:
        yield served.url


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("device", ["LAPTOP", "PHONE"])
def test_page_loads_without_a_word_and_fits(tool: Any, browser: Any, url: str, path: str, device: str) -> None:
    browser.open(url + path, size=getattr(tool, device))
    assert browser.messages == []
    assert tool.sideways(browser) <= 0
    assert browser.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") != "none"
    assert browser.picture().startswith(PNG)


def test_decision_and_problem_pages(tool: Any, browser: Any, url: str, home: Home) -> None:
    browser.open(f"{url}/decisions/{home.rows['decision_id'][0]}", size=tool.PHONE)
    assert browser.messages == []
    assert tool.sideways(browser) <= 0
    browser.open(f"{url}/decisions?page=-1", size=tool.PHONE)
    assert "cannot be asked for" in browser.evaluate("document.querySelector('h1').textContent")


@pytest.mark.parametrize("device", ["LAPTOP", "PHONE"])
@pytest.mark.parametrize("path", ["/", "/drift", "/detectors", "/releases", "/outcomes", "/incidents", "/calibration"])
def test_empty_pages_fit(tool: Any, browser: Any, tmp_path: Path, path: str, device: str) -> None:
    with running(Starlette(routes=routes(tmp_path / "absent"), exception_handlers=handlers())) as served:
        browser.open(served.url + path, size=getattr(tool, device))
        assert browser.messages == []
        assert tool.sideways(browser) <= 0
        # A heading stands where all others do.
        left = "document.querySelector('{}').getBoundingClientRect().left"
        assert browser.evaluate(left.format("h1")) == browser.evaluate(left.format(".sheet"))


def test_a_slice_is_not_broken_within_a_word(tool: Any, browser: Any, url: str) -> None:
    browser.open(f"{url}/incidents/incident-0001", size=tool.LAPTOP)
    heights = browser.evaluate(
        "[...document.querySelectorAll('tr.told')].map(one => one.getBoundingClientRect().height)"
    )
    assert heights
    assert max(heights) < 60


def test_dark_is_dark(tool: Any, browser: Any, url: str) -> None:
    light_and_dark = []
    for dark in (False, True):
        browser.open(url, size=tool.LAPTOP, dark=dark)
        colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        light_and_dark.append(sum(int(part) for part in colour[4:-1].split(",")))
    assert light_and_dark[0] > 600 > 150 > light_and_dark[1]


def contrast(one: str, other: str) -> float:
    # WCAG 2.2, contrast ratio.
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/features",
        "/features/customer",
        "/models",
        "/drift",
        "/calibration",
        "/estimates",
        "/detectors",
        "/outcomes",
        "/alerts",
        "/incidents/incident-0001",
        "/releases",
        "/costs",
    ],
)
def test_text_is_legible(tool: Any, browser: Any, url: str, path: str, dark: bool) -> None:
    browser.open(url + path, size=tool.LAPTOP, dark=dark)
    pairs = browser.evaluate(
        """[...document.querySelectorAll('main *, nav a, footer')]
        .filter(one => !one.closest('svg') && [...one.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
        .map(one => {
            let under = one, back = 'rgba(0, 0, 0, 0)';
            while (back.startsWith('rgba') && under) {
                back = getComputedStyle(under).backgroundColor; under = under.parentElement;
            }
            return [getComputedStyle(one).color, back, one.textContent.trim().slice(0, 40)];
        })"""
    )
    assert len(pairs) > 20
    for colour, back, text in pairs:
        assert contrast(colour, back) >= 4.5, text


@pytest.mark.parametrize("path", ["/calibration", "/estimates", "/detectors", "/outcomes", "/drift"])
def test_charts_are_drawn_named_and_told_as_a_table(tool: Any, browser: Any, url: str, path: str) -> None:
    browser.open(url + path, size=tool.LAPTOP)
    charts = browser.evaluate(
        """[...document.querySelectorAll('.plot svg')].map(one => [one.getAttribute('role'),
            one.getAttribute('aria-label'), one.getBoundingClientRect().width,
            one.querySelectorAll('polyline, rect, line.dot').length,
            Boolean(one.closest('figure, section').querySelector('table')
                || one.closest('section.sheet')?.querySelector('table'))])"""
    )
    assert charts
    for role, name, width, marks, told in charts:
        assert (role, bool(name), told) == ("img", True, True), name
        assert width > 200, name
        assert marks > 0, name


def test_keyboard_reaches_what_is_there_to_do(tool: Any, browser: Any, url: str) -> None:
    browser.open(f"{url}/incidents/incident-0001", size=tool.LAPTOP)
    # A link, a fold or a command: each takes the focus, and a command can be scrolled with the keys.
    reached = browser.evaluate(
        """[...document.querySelectorAll('a, summary, pre')].map(one => { one.focus(); return [one.tagName,
            document.activeElement === one]; })"""
    )
    assert {name for name, _ in reached} == {"A", "SUMMARY", "PRE"}
    assert all(focused for _, focused in reached)


@pytest.mark.parametrize("device", ["LAPTOP", "PHONE"])
def test_costs_can_be_read(tool: Any, browser: Any, url: str, device: str) -> None:
    # A name of a team may be broken between letters, but not into a column of them.
    browser.open(f"{url}/costs?by=team", size=getattr(tool, device))
    tables = browser.evaluate(
        "[...document.querySelectorAll('table')].map(one => [one.querySelectorAll('tbody tr').length, "
        "Math.min(...[...one.querySelectorAll('tbody th')].map(cell => cell.getBoundingClientRect().width))])"
    )
    assert [rows for rows, _ in tables] == [1, 2]
    assert min(width for _, width in tables) > 120
    text = browser.evaluate("document.querySelector('main').innerText")
    assert not re.search(r"\de[+-]\d", text), "no number stands in powers of ten"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("device", ["LAPTOP", "PHONE"])
def test_lineage_can_be_read(tool: Any, browser: Any, url: str, device: str, dark: bool) -> None:
    browser.open(f"{url}/features/customer", size=getattr(tool, device), dark=dark)
    shown, hidden = ("layered", "arcs") if device == "LAPTOP" else ("arcs", "layered")
    width = "document.querySelector('.lineage .{}').getBoundingClientRect().width"
    assert browser.evaluate(width.format(shown)) > 300
    assert browser.evaluate(width.format(hidden)) == 0
    # Every name lies in its box or beside its dot, within the picture, and stands out from what is under it.
    nodes = browser.evaluate(
        """[...document.querySelectorAll('.lineage .node')].filter(one => one.getBoundingClientRect().width)
        .map(one => {
            const text = one.querySelector('text'), box = one.querySelector('rect');
            const words = text.getBoundingClientRect(), edge = (box || one.ownerSVGElement).getBoundingClientRect();
            const back = getComputedStyle(box || document.querySelector('.sheet'))[box ? 'fill' : 'backgroundColor'];
            return [text.textContent, words.left - edge.left, edge.right - words.right, words.height,
                getComputedStyle(text).fill, back];
        })"""
    )
    assert len(nodes) > 20
    for name, left, right, height, colour, back in nodes:
        assert left > 0, name
        assert right >= 0, name
        assert height >= 11, name
        assert contrast(colour, back) >= 4.5, name

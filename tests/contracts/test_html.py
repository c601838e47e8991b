import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from tests.contracts.conftest import CORPUS, NOW, TEXT, frame

from vitok import contracts
from vitok.clock import DAY
from vitok.contracts import html
from vitok.errors import ContractBroken

VOID = {"meta", "wbr", "br", "link"}


class Markup(HTMLParser):
    """Reads a page, fails on a tag that is not closed, and keeps its tags and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def test_page_says_what_was_found(contract: contracts.Contract) -> None:
    report = contract.check(frame(*(row for row, _ in CORPUS)), now=NOW + 5 * DAY, expected_rows=100)
    page = Markup(html.render(report, now=NOW, source="day.parquet"))
    assert f"{report.n_rejected} of {report.n_rows} rows are rejected" in page.text
    for result in report.failed:
        assert result.wanted in page.text
    for reason in report.rejected["reason"]:
        assert " ".join(reason.split()) in page.text
    assert "checked 2018-04-02T00:00:00Z" in page.text
    assert "other rules hold" in page.text


def test_page_stands_alone_and_runs_nothing(contract: contracts.Contract) -> None:
    evil = frame({"id": "<script>", "currency": '"><img src=x onerror=alert(1)>'})
    page = html.render(contract.check(evil, now=NOW), source="<b>")
    markup = Markup(page)
    names = {tag for tag, _ in markup.tags}
    assert not names & {"script", "img", "link", "iframe", "b", "object"}
    for _, attributes in markup.tags:
        assert not {name for name in attributes if name.startswith("on") or name in {"src", "href"}}
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (frame({}), "All rows keep the contract"),
        (frame(), "All rows are accepted, with 2 warnings"),
        (frame({}, {}).head(0).lazy(), "warnings"),
    ],
)
def test_verdict(contract: contracts.Contract, data: pl.DataFrame, said: str) -> None:
    assert said in Markup(html.render(contract.check(data, now=NOW))).text


def test_no_row_and_nothing_to_warn_of() -> None:
    contract = contracts.infer(pl.DataFrame({"a": pl.Series([], dtype=pl.Int64)}), name="t")
    assert "no row to check" in Markup(html.render(contract.check(pl.DataFrame({"a": []})))).text


def test_blocked_data(contract: contracts.Contract) -> None:
    with pytest.raises(ContractBroken) as caught:
        contract.check(frame({}).drop("amount"))
    page = Markup(html.render(caught.value, now=NOW))
    assert "The data is blocked" in page.text
    assert "column 'amount' (number) is missing" in page.text


def test_many_rows_and_columns_are_cut_and_counted(contract: contracts.Contract) -> None:
    wide = frame(*({"amount": -1.0} for _ in range(250))).with_columns(
        **{f"more_{index}": pl.lit("x" * 100) for index in range(20)}
    )
    page = Markup(html.render(contract.check(wide, now=NOW)))
    assert "the first 100 of 250 rows and 8 of 27 columns" in page.text
    assert sum(tag == "tr" for tag, _ in page.tags) < 160


def test_not_checked_is_told() -> None:
    text = TEXT + "  - {property: retention, value: 3, unit: y}\n"
    page = html.render(contracts.load(text).check(frame({}), now=NOW))
    assert "slaProperties: retention 3" in Markup(page).text


def test_page_is_readable_on_a_telephone(contract: contracts.Contract, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser to draw the page with")
    report = contract.check(frame(*(row for row, _ in CORPUS)), now=NOW)
    path = tmp_path / "report.html"
    # The page's own policy forbids scripts; the probe is let in for this test only.
    probe = "<script>document.title = [innerWidth, document.documentElement.scrollWidth].join(' ')</script></body>"
    page = re.sub(r"<meta http-equiv[^>]*>", "", html.render(report)).replace("</body>", probe)
    path.write_text(page)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,1200", "--dump-dom"]
    options.append(f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run([browser, *options, path.as_uri()], capture_output=True, text=True, check=True, timeout=60)
    match = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert match is not None
    inner, needed = int(match[1]), int(match[2])
    assert needed <= max(inner, 390)

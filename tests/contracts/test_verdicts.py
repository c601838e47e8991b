"""Each case of the shared corpus gets its verdict from a frame and from its file."""

from pathlib import Path

import pytest
from tests.contracts.verdicts import Case, cases

from vitok import contracts
from vitok.clock import SystemClock
from vitok.contracts.files import scan
from vitok.errors import ContractBroken

CASES = cases()


def good(case: Case, folder: Path) -> bool:
    """Our verdict: no rule is broken, also none that only warns."""
    path, data = case.write(folder)
    try:
        report = contracts.load(path).check(scan(data), now=SystemClock().now())
    except ContractBroken:
        return False
    return not report.failed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict(case: Case, tmp_path: Path) -> None:
    assert good(case, tmp_path) is case.good


def test_corpus_is_large_enough_and_fair() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert 25 <= sum(case.good for case in CASES) <= len(CASES) - 25

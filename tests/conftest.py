"""Fixtures that every room's tests may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from vitok import settings

# Two test processes on two cores: a training thread that spins while it waits takes the other's core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the published data, which is too large for the repository; skips where it is not at hand."""
    named = os.environ.get("VITOK_SHARED_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published data is not in {folder}; VITOK_SHARED_DATA names another folder")
    return folder


@pytest.fixture
def tmp_home(tmp_path: Path) -> Iterator[Path]:
    """An empty home for all that vitok writes, in force for the length of one test."""
    home = tmp_path / "home"
    home.mkdir()
    with settings.using(home=home):
        yield home

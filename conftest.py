"""Runs each example of the documentation in an empty folder, so that what one writes no other finds."""

import pytest


@pytest.fixture(autouse=True)
def _examples_in_an_empty_folder(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))

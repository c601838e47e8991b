"""Teams that follow the keys: new keys at once, changes in a second, and nothing lost where the store is gone."""

import logging
from pathlib import Path

import pytest
from tests.serving.backends import Ticks

from vitok.errors import InvalidInput
from vitok.guard import KeyStore
from vitok.serving.teams import KeyTeams


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.sqlite")


def create(store: KeyStore, tenant: str, team: str, *, now: int = 0) -> None:
    store.create("a key", tenant=tenant, team=team, scopes=["infer:*"], actor="ann", now=now)


def test_a_new_tenant_is_looked_for_at_once_and_a_change_in_a_second(store: KeyStore) -> None:
    clock = Ticks()
    create(store, "bare", "")
    team_of = KeyTeams(store, {"app": "mobile"}, clock=clock)
    assert (team_of("app"), team_of("bare"), team_of("")) == ("mobile", "bare", "")
    create(store, "web", "checkout")
    clock.pass_seconds(0.02)
    assert team_of("web") == "checkout"
    create(store, "bare", "late")
    clock.pass_seconds(0.5)
    assert team_of("bare") == "bare"
    clock.pass_seconds(0.5)
    assert team_of("bare") == "late"


def test_strangers_do_not_have_the_store_read_all_the_time(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticks()
    team_of = KeyTeams(store, clock=clock)
    asked: list[int] = []
    monkeypatch.setattr(store, "newer", lambda revision: asked.append(revision))
    for k in range(1_000):
        clock.pass_seconds(0.0001)
        assert team_of(f"stranger {k}") == f"stranger {k}"
    assert len(asked) == 10


def test_teams_that_contradict_each_other(store: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    clock = Ticks()
    create(store, "web", "checkout")
    team_of = KeyTeams(store, clock=clock)
    create(store, "web", "risk", now=1)
    with caplog.at_level(logging.WARNING, logger="vitok.serving"):
        for _ in range(5):
            clock.pass_seconds(1)
            assert team_of("web") == "checkout"
    assert len(caplog.records) == 1
    assert "another key of web" in caplog.text
    with pytest.raises(InvalidInput, match="another key of web"):
        KeyTeams(store)


def test_a_store_out_of_reach_changes_nothing(store: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    clock = Ticks()
    create(store, "web", "checkout")
    team_of = KeyTeams(store, clock=clock)
    away = store.path.rename(store.path.with_name("away"))
    clock.pass_seconds(1)
    assert team_of("web") == "checkout"
    assert "stay as they were" in caplog.text
    away.rename(store.path)
    create(store, "new", "risk")
    clock.pass_seconds(1)
    assert team_of("new") == "risk"

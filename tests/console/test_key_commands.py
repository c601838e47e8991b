"""`vitok keys`: what a person does to keys from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vitok.clock import parse_time
from vitok.console.key_commands import key_app
from vitok.guard import KeyRing, KeyStore, Refusal

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "keys.sqlite"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(key_app, [str(item) for item in arguments])
    # Errors come as one message, never as a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def create(store: Path, *more: object) -> str:
    options = ("--tenant", "shop", "--scope", "decide:fraud", "--scope", "infer:*", "--by", "ann", "--now", NOW)
    result = run("create", "web shop", *options, "--store", store, *more)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_life_of_a_key(store: Path) -> None:
    token = create(store, "--team", "checkout").strip()
    at = parse_time(NOW)
    ring = KeyRing(KeyStore(store))
    assert not isinstance(ring.check(token, "infer:any", at), Refusal)
    (key,) = KeyStore(store).keys()
    listed = run("list", "--store", store, "--now", NOW)
    assert listed.stdout.split()[:2] == ["valid", key.key_id]
    assert "shop/checkout" in listed.stdout
    assert token not in listed.output

    rotated = run("rotate", key.key_id, "--by", "ann", "--overlap", "2h", "--store", store, "--now", NOW, "--json")
    new = json.loads(rotated.stdout)
    assert (new["replaces"], new["tenant"], new["expires"]) == (key.key_id, "shop", "2027-01-01T00:00:00Z")
    assert not isinstance(KeyRing(KeyStore(store)).check(new["token"], "decide:fraud", at), Refusal)

    gone = run("revoke", new["key_id"], "--by", "bob", "--reason", "leaked", "--store", store, "--now", NOW)
    assert "revoked 2026-01-01T00:00:00Z" in gone.stdout
    later = "2026-01-01T03:00:00Z"
    assert "2 more" in run("list", "--store", store, "--now", later).stdout
    every = json.loads(run("list", "--all", "--json", "--store", store, "--now", later).stdout)
    assert [item["state"] for item in every] == ["expired", "revoked"]
    told = run("history", "--store", store).stdout
    assert [line.split()[2] for line in told.splitlines()] == ["created", "rotated", "created", "revoked"]
    assert "by bob: leaked" in told


def test_keys_without_end_and_from_a_day_on(store: Path) -> None:
    made = json.loads(create(store, "--valid", "never", "--since", "2026-02-01", "--json"))
    assert (made["expires"], made["not_before"], made["state"]) == (None, "2026-02-01T00:00:00Z", "early")


def test_what_cannot_be_done(store: Path) -> None:
    nowhere = run("list", "--store", store)
    assert nowhere.exit_code == 2
    assert "does not exist" in nowhere.output
    assert not store.exists()
    create(store)
    for arguments in (
        ("rotate", "nobody", "--by", "ann"),
        ("revoke", "nobody", "--by", "ann", "--reason", "x"),
        ("create", "x", "--tenant", "t", "--scope", "a b", "--by", "ann"),
        ("create", "x", "--tenant", "t", "--scope", "admin", "--by", "ann", "--valid", "soon"),
    ):
        result = run(*arguments, "--store", store)
        assert result.exit_code == 2, arguments
        assert "vitok: " in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "x", "--tenant", "t", "--scope", "a b", "--by", "ann"), "--scope: got 'a b'"),
        (("create", "x", "--tenant", "", "--scope", "a", "--by", "ann"), "--tenant: got ''"),
        (("create", "x", "--tenant", "t", "--scope", "a", "--by", ""), "--by: got ''"),
        (("create", "x", "--tenant", "t", "--scope", "a", "--by", "ann", "--valid", "5"), "--valid: got '5'"),
        (("create", "x", "--tenant", "t", "--scope", "a", "--by", "ann", "--since", "soon"), "--since: got 'soon'"),
        (("create", "x", "--tenant", "t", "--scope", "a", "--by", "ann", "--now", "soon"), "--now: got 'soon'"),
        (("rotate", "nobody", "--by", "ann", "--overlap", "-1d"), "--overlap: got '-1d'"),
        (("history", "nobody"), "key 'nobody' does not exist; there is: "),
    ],
)
def test_what_is_wrong_is_named(store: Path, arguments: tuple[str, ...], told: str) -> None:
    create(store)
    result = run(*arguments, "--store", store)
    assert result.exit_code == 2
    assert told in result.output


def test_the_store_of_the_home(tmp_home: Path) -> None:
    made = run("create", "x", "--tenant", "t", "--scope", "admin", "--by", "ann")
    assert made.exit_code == 0
    assert (tmp_home / "guard" / "keys.sqlite").is_file()
    assert "there are no keys yet" not in run("list").stdout

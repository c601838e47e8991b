"""API keys: what is let in and why not, what is kept on the disk, rotation, and many processes on one file."""

import hashlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.clock import DAY, SECOND
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.guard import Issued, Key, KeyRing, KeyStore, Refusal, looks_whole
from vitok.guard.keys import Snapshot, check_scopes, new_token

NOW = 1_700_000_000 * SECOND
SCOPE = "decide:fraud"


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "guard" / "keys.sqlite")


def issue(store: KeyStore, **changes: object) -> Issued:
    given = {"tenant": "shop", "scopes": [SCOPE], "actor": "ann", "now": NOW, **changes}
    return store.create("web", **given)  # type: ignore[arg-type]


def reason(found: Key | Refusal) -> str:
    return found.reason if isinstance(found, Refusal) else "let in"


def test_who_is_let_in_and_why_not(store: KeyStore) -> None:
    good = issue(store, expires="1d")
    early = issue(store, not_before=NOW + DAY)
    gone = issue(store)
    store.revoke(gone.key.key_id, reason="lost", actor="ann", now=NOW)
    ring = KeyRing(store)
    other = KeyStore(store.path.with_name("other.sqlite"))
    cases: list[tuple[str | bytes | None, str, int, str, int]] = [
        (good.token, SCOPE, NOW, "let in", 0),
        (good.token.encode(), SCOPE, NOW, "let in", 0),
        (good.token, SCOPE, NOW + DAY - 1, "let in", 0),
        (good.token, SCOPE, NOW + DAY, "expired", 401),
        (early.token, SCOPE, NOW, "early", 401),
        (early.token, SCOPE, NOW + DAY, "let in", 0),
        (gone.token, SCOPE, NOW, "revoked", 401),
        (gone.token, SCOPE, NOW - DAY, "revoked", 401),
        (good.token, "decide:shop", NOW, "scope", 403),
        (good.token, "decide", NOW, "scope", 403),
        (issue(other).token, SCOPE, NOW, "unknown", 401),
        (good.token[:-1], SCOPE, NOW, "mistyped", 401),
        (good.token[:30] + "?" + good.token[31:], SCOPE, NOW, "mistyped", 401),
        ("vitok_", SCOPE, NOW, "mistyped", 401),
        ("sk-12345", SCOPE, NOW, "malformed", 401),
        ("vitök_1", SCOPE, NOW, "malformed", 401),
        (b"\xff\xfe", SCOPE, NOW, "malformed", 401),
        ("", SCOPE, NOW, "missing", 401),
        (None, SCOPE, NOW, "missing", 401),
    ]
    for token, scope, now, expected, status in cases:
        found = ring.check(token, scope, now)
        assert reason(found) == expected, (token, scope, now)
        if isinstance(found, Refusal):
            assert found.status == status
            assert "www-authenticate" in found.headers()
            assert good.token not in str(found)


def test_the_state_of_a_key_is_told_only_to_who_has_its_secret(store: KeyStore) -> None:
    gone = issue(store)
    store.revoke(gone.key.key_id, reason="lost", actor="ann", now=NOW)
    _, stranger = new_token()
    body = f"vitok_{gone.key.key_id}_{stranger[19:51]}"
    from vitok.guard.keys import _checksum

    forged = body + _checksum(body.encode()).decode()
    assert looks_whole(forged)
    assert reason(KeyRing(store).check(forged, SCOPE, NOW)) == "unknown"


@given(st.integers(6, 57), st.binary(min_size=1, max_size=4), st.data())
def test_a_typo_is_told_without_any_key(place: int, wrong: bytes, data: st.DataObject) -> None:
    # CRC-32 finds every error within 32 neighbouring bits (Peterson and Brown 1961).
    token = bytearray(b"vitok_0123456789ab_" + b"0" * 32 + b"0000000")
    from vitok.guard.keys import _checksum

    token[-7:] = _checksum(bytes(token[:-7]))
    whole = bytes(token)
    assert looks_whole(whole)
    token[place : place + len(wrong)] = wrong
    if bytes(token) != whole and place + len(wrong) <= 51:
        assert not looks_whole(bytes(token))


@pytest.mark.parametrize("swap", range(6, 57))
def test_two_characters_in_the_wrong_order_are_a_typo(swap: int) -> None:
    _, token = new_token()
    swapped = token[:swap] + token[swap + 1] + token[swap] + token[swap + 2 :]
    assert looks_whole(swapped) == (swapped == token)


def test_scopes() -> None:
    key = Key(
        key_id="", name="", tenant="", scopes=check_scopes(["infer:*", "admin", "decide:a"]), created=0, not_before=0
    )
    asked = ("infer:fraud", "infer", "admin", "admin:x", "decide:a", "decide:ab", "inferx:fraud")
    assert [key.allows(scope) for scope in asked] == [True, False, True, False, True, False, False]
    for bad in ([], "admin", ["*"], ["a b"], ["decide:"], ["decide:a*"], ["decide:*x"], ['a:"'], [":x"], ["ä"]):
        with pytest.raises(InvalidInput):
            check_scopes(bad)


def test_the_disk_holds_no_secret(store: KeyStore) -> None:
    made = issue(store)
    raw = store.path.read_bytes()
    secret = made.token[19:51].encode()
    assert made.key.key_id.encode() in raw
    assert secret not in raw
    # A plain hash of the token could be guessed at; the keyed one cannot without the other file.
    assert hashlib.blake2b(made.token.encode(), digest_size=32).digest() not in raw
    beside = store.path.with_name("keys.sqlite.secret")
    expected = hashlib.blake2b(made.token.encode(), key=beside.read_bytes(), digest_size=32).digest()
    assert expected in raw
    assert beside.stat().st_mode & 0o077 == 0
    assert made.token not in repr(made)
    assert made.token not in str(made)


def test_rotation_overlaps(store: KeyStore) -> None:
    old = issue(store, expires="30d")
    ring = KeyRing(store)
    new = store.rotate(old.key.key_id, actor="ann", now=NOW, overlap="1d")
    later = NOW + 2 * SECOND
    assert {reason(ring.check(made.token, SCOPE, later)) for made in (old, new)} == {"let in"}
    assert reason(ring.check(old.token, SCOPE, NOW + DAY)) == "expired"
    assert reason(ring.check(new.token, SCOPE, NOW + DAY)) == "let in"
    assert (new.key.scopes, new.key.tenant, new.key.replaces) == (old.key.scopes, "shop", old.key.key_id)
    with pytest.raises(Conflict, match=new.key.key_id):
        store.rotate(old.key.key_id, actor="ann", now=NOW)
    # An overlap never makes the old one live longer.
    again = store.rotate(new.key.key_id, actor="ann", now=NOW, overlap="1000d")
    assert store.get(new.key.key_id).expires == new.key.expires
    store.revoke(again.key.key_id, reason="lost", actor="ann", now=NOW)
    with pytest.raises(Conflict, match="revoked"):
        store.rotate(again.key.key_id, actor="ann", now=NOW)
    assert [event.kind for event in store.events(old.key.key_id)] == ["created", "rotated"]


def test_changes_arrive_within_a_refresh_and_cost_nothing_before(store: KeyStore) -> None:
    made = issue(store)
    ring = KeyRing(store, refresh="1s")
    assert reason(ring.check(made.token, SCOPE, NOW)) == "let in"
    store.revoke(made.key.key_id, reason="lost", actor="ann", now=NOW)
    store.path.rename(store.path.with_name("away"))
    assert reason(ring.check(made.token, SCOPE, NOW + SECOND - 1)) == "let in"
    assert ring.problem == ""
    store.path.with_name("away").rename(store.path)
    assert reason(ring.check(made.token, SCOPE, NOW + SECOND)) == "revoked"


def test_a_clock_that_goes_back_delays_no_revocation(store: KeyStore) -> None:
    made = issue(store)
    ring = KeyRing(store)
    ring.check(made.token, SCOPE, NOW + DAY)
    store.revoke(made.key.key_id, reason="lost", actor="ann", now=NOW)
    assert reason(ring.check(made.token, SCOPE, NOW)) == "revoked"


def test_a_store_out_of_reach(store: KeyStore) -> None:
    made = issue(store)
    lasting, strict = KeyRing(store), KeyRing(store, stale_after="10s")
    for ring in (lasting, strict):
        assert reason(ring.check(made.token, SCOPE, NOW)) == "let in"
    whole = store.path.read_bytes()
    store.path.write_bytes(b"this is no database any more" * 100)
    assert reason(lasting.check(made.token, SCOPE, NOW + DAY)) == "let in"
    assert "keys.sqlite" in lasting.problem
    assert reason(strict.check(made.token, SCOPE, NOW + 5 * SECOND)) == "let in"
    found = strict.check(made.token, SCOPE, NOW + 11 * SECOND)
    assert isinstance(found, Refusal)
    assert (found.reason, found.status, found.headers()) == ("stale", 503, {"retry-after": "5"})
    store.path.write_bytes(whole)
    assert reason(strict.check(made.token, SCOPE, NOW + 11 * SECOND + 1)) == "let in"
    assert strict.problem == ""


def test_a_writer_does_not_hold_up_a_check(store: KeyStore) -> None:
    made = issue(store)
    ring = KeyRing(store)
    writer = sqlite3.connect(store.path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    try:
        assert reason(ring.check(made.token, SCOPE, NOW)) == "let in"
        assert "others" in ring.problem
    finally:
        writer.close()


def test_another_secret_is_noticed(store: KeyStore) -> None:
    path = store.path
    with pytest.raises(StoreError, match="another secret"):
        KeyStore(path, secret=b"x" * 32)
    path.with_name("keys.sqlite.secret").unlink()
    with pytest.raises(StoreError, match="another secret"):
        KeyStore(path)
    with pytest.raises(InvalidInput, match="16 to 64"):
        KeyStore(path, secret=b"short")


def test_what_is_on_record_stays(store: KeyStore) -> None:
    issue(store)
    with sqlite3.connect(store.path) as connection, pytest.raises(sqlite3.IntegrityError, match="never"):
        connection.execute("DELETE FROM event")
    connection.close()
    with pytest.raises(InvalidInput, match="on record"):
        store.revoke("x", reason="", actor="ann", now=NOW)
    with pytest.raises(NotFound):
        store.revoke("x", reason="why", actor="ann", now=NOW)
    for bad in ({"tenant": ""}, {"actor": "a\n"}, {"expires": "soon"}, {"scopes": []}):
        with pytest.raises(InvalidInput):
            issue(store, **bad)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(StoreError, match="does not hold keys"):
        KeyStore(path)
    assert [file.name for file in tmp_path.iterdir()] == ["other.sqlite"]


_WRITER = """
import sys
from vitok.guard import KeyStore
store = KeyStore(sys.argv[1])
for i in range(20):
    made = store.create(f"key {i}", tenant=sys.argv[2], scopes=["decide:fraud"], actor="p", now=1)
    store.rotate(made.key.key_id, actor="p", now=2)
"""


def test_processes_share_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    started = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), f"t{i}"]) for i in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    store = KeyStore(path)
    assert len(store.keys()) == 3 * 20 * 2
    assert [event.revision for event in store.events()] == list(range(1, 3 * 20 * 3 + 1))
    assert len(KeyRing(store)._keys) == 120


class Memory:
    """A store in memory, so that a test can change it as often as it likes."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Key] = {}
        self.revision = 0

    def hasher(self) -> "hashlib.blake2b":
        return hashlib.blake2b(key=b"secret", digest_size=32)

    def newer(self, revision: int) -> Snapshot | None:
        return None if revision == self.revision else Snapshot(self.revision, dict(self.keys))

    def put(self, token: str, **changes: Any) -> Key:
        digest = self.hasher()
        digest.update(token.encode())
        given = {"scopes": frozenset([SCOPE]), "created": 0, "not_before": 0, "digest": digest.digest(), **changes}
        key = Key(key_id=token[6:18], name="web", tenant="shop", **given)
        self.keys[key.key_id.encode()] = key
        self.revision += 1
        return key


def test_many_keys_are_remembered_and_one_that_is_revoked_is_refused_within_a_refresh() -> None:
    store = Memory()
    tokens = [new_token()[1] for _ in range(2_000)]
    for token in tokens:
        store.put(token)
    ring = KeyRing(store, refresh="1s")
    headers = [f"Bearer {token}".encode() for token in tokens]
    for token, header in zip(tokens, headers, strict=True):
        assert reason(ring.check(token, SCOPE, NOW, shown=header)) == "let in"
    good = ring.good(SCOPE, NOW)
    assert good is not None
    assert [good[header].key_id for header in headers] == [token[6:18] for token in tokens]
    store.put(tokens[7], revoked=NOW)
    assert headers[7] in (ring.good(SCOPE, NOW + SECOND - 1) or {})
    assert ring.good(SCOPE, NOW + SECOND) == {}
    found = [reason(ring.check(token, SCOPE, NOW + SECOND)) for token in tokens]
    assert found.count("let in") == 1_999
    assert found[7] == "revoked"


def test_what_is_remembered_ends_with_the_key_to_the_microsecond() -> None:
    store = Memory()
    first, second, third = (new_token()[1] for _ in range(3))
    store.put(first, expires=NOW + 500)
    store.put(second, expires=NOW + 900)
    store.put(third, not_before=NOW + 200)
    ring = KeyRing(store, refresh="1h")
    assert [reason(ring.check(token, SCOPE, NOW)) for token in (first, second, third)] == ["let in", "let in", "early"]
    assert reason(ring.check(third, SCOPE, NOW + 200)) == "let in"
    assert [token.encode() in (ring.good(SCOPE, NOW + 499) or {}) for token in (first, second, third)] == [True] * 3
    assert ring.good(SCOPE, NOW + 500) == {}
    assert [reason(ring.check(token, SCOPE, NOW + 500)) for token in (first, second)] == ["expired", "let in"]
    assert reason(ring.check(second, SCOPE, NOW + 899)) == "let in"
    assert reason(ring.check(second, SCOPE, NOW + 900)) == "expired"
    # A clock that goes back brings neither the one that has ended nor the one that has not begun.
    assert reason(ring.check(third, SCOPE, NOW + 950)) == "let in"
    assert reason(ring.check(third, SCOPE, NOW + 199)) == "early"


def test_a_rotated_key_is_remembered_until_the_end_of_its_overlap(store: KeyStore) -> None:
    old = issue(store, expires="30d")
    ring = KeyRing(store)
    assert reason(ring.check(old.token, SCOPE, NOW)) == "let in"
    new = store.rotate(old.key.key_id, actor="ann", now=NOW, overlap="5s")
    for now in (NOW + SECOND, NOW + 5 * SECOND - 1):
        assert {reason(ring.check(made.token, SCOPE, now)) for made in (old, new)} == {"let in"}
    assert [reason(ring.check(made.token, SCOPE, NOW + 5 * SECOND)) for made in (old, new)] == ["expired", "let in"]


def test_what_is_remembered_is_bounded_in_time_and_number_and_by_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitok.guard.keys._MOST_KEPT", 8)
    store = Memory()
    token = new_token()[1]
    store.put(token, scopes=frozenset(["infer:*"]))
    ring = KeyRing(store, refresh="1h")
    for blanks in range(40):
        header = b"Bearer " + b" " * blanks + token.encode()
        assert reason(ring.check(token, "infer:a", NOW, shown=header)) == "let in"
        assert len(ring.good("infer:a", NOW) or {}) <= 8
    assert ring.good("infer:b", NOW) == {}
    assert reason(ring.check(token, "admin", NOW)) == "scope"
    assert reason(ring.check(token[:-1], "infer:a", NOW)) == "mistyped"
    assert ring.good("admin", NOW) == {}
    assert len(ring.good("infer:a", NOW) or {}) > 0
    assert ring.good("infer:a", NOW + 10 * SECOND) == {}


steps = st.lists(
    st.tuples(st.sampled_from(["check", "revoke", "end", "back"]), st.integers(0, 3), st.integers(0, 40)), max_size=60
)


@given(steps)
def test_remembering_changes_no_answer(plan: list[tuple[str, int, int]]) -> None:
    store, now = Memory(), NOW
    tokens = [new_token()[1] for _ in range(4)]
    for place, token in enumerate(tokens):
        store.put(token, not_before=NOW + 10 * place, expires=NOW + 60 + 40 * place)
    ring = KeyRing(store, refresh=1)
    for what, place, step in plan:
        now = now - step if what == "back" else now + 1 + step
        token = tokens[place]
        if what == "revoke":
            store.put(token, revoked=now)
        elif what == "end":
            store.put(token, not_before=NOW, expires=now + step)
        for asked in tokens:
            # A ring that has just been made remembers nothing.
            assert reason(ring.check(asked, SCOPE, now)) == reason(KeyRing(store).check(asked, SCOPE, now))

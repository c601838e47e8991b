"""Where API keys are kept: a SQLite file for any number of processes, and the secret key of its hashes beside it."""

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vitok.clock import DAY, duration, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.guard.keys import Key, Snapshot, check_scopes, new_token

_WAIT_SECONDS = 10.0
_LAYOUT = 1
_PROOF = "proof of the secret"
_LEAST_SECRET, _MOST_SECRET = 16, 64
_COLUMNS = "key_id, name, tenant, team, scopes, created, not_before, expires, revoked, replaces, digest"
_SCHEMA = """
CREATE TABLE key (
    key_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    team TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER,
    replaces TEXT NOT NULL,
    digest BLOB NOT NULL
) STRICT;
CREATE TABLE event (
    revision INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    key_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE TRIGGER event_no_update BEFORE UPDATE ON event
BEGIN SELECT RAISE(ABORT, 'what was done to keys is never changed'); END;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event
BEGIN SELECT RAISE(ABORT, 'what was done to keys is never deleted'); END;
CREATE TABLE proof (digest BLOB NOT NULL) STRICT;
"""


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A key that was just made, with its token: the only time that anybody sees it.

    Attributes:
        key: What the store keeps.
        token: What the caller sends; hand it over and forget it.
    """

    key: Key
    token: str = field(repr=False)

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True, kw_only=True)
class KeyEvent:
    """One thing that was done to a key.

    Attributes:
        revision: Number of the event; the revision of the store after it.
        time: When, in microseconds.
        kind: `"created"`, `"rotated"` or `"revoked"`.
        key_id: To which key.
        actor: Who did it.
        reason: Why.
    """

    revision: int
    time: int
    kind: str
    key_id: str
    actor: str
    reason: str

    def __str__(self) -> str:
        return f"{isoformat(self.time)} {self.key_id} {self.kind} by {self.actor}" + (
            f": {self.reason}" if self.reason else ""
        )


class KeyStore:
    """Makes, rotates and revokes API keys; what each may do and who did what to it stays on record.

    Any number of threads and processes may use one file. A change is on the disk when the call returns.

    Args:
        path: The SQLite file; made where it does not exist.
        secret: The key of the hashes, 16 to 64 bytes, from where the operator keeps secrets. None keeps one beside
            the file, `<path>.secret`, readable by its owner only: then do not put both into one backup.

    Raises:
        InvalidInput: If the secret is too short or too long.
        StoreError: If the file cannot be used, or was made with another secret.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = KeyStore(folder.name + "/keys.sqlite")
        >>> old = store.create("web shop", tenant="shop", scopes=["decide:fraud"], actor="ann", now=0, expires="90d")
        >>> new = store.rotate(old.key.key_id, overlap="1d", actor="ann", now=0)
        >>> store.get(old.key.key_id).expires == 86_400_000_000, new.key.replaces == old.key.key_id
        (True, True)
        >>> _ = store.revoke(new.key.key_id, reason="in a public repository", actor="ann", now=5)
        >>> store.get(new.key.key_id).state(5)
        'revoked'
        >>> [event.kind for event in store.events()]
        ['created', 'rotated', 'created', 'revoked']
        >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, *, secret: bytes | None = None) -> None:
        self.path = Path(path)
        if secret is not None and not _LEAST_SECRET <= len(secret) <= _MOST_SECRET:
            raise InvalidInput("secret", f"{len(secret)} bytes", f"have {_LEAST_SECRET} to {_MOST_SECRET} bytes")
        # Operators mount the file read only and put another one in its place.
        self._database = Database(
            self.path,
            schema=_SCHEMA,
            kind="keys",
            version=_LAYOUT,
            durable=True,
            wait_seconds=_WAIT_SECONDS,
            journal="rollback",
        )
        try:
            self._secret = secret if secret is not None else _kept_secret(self.path)
        except OSError as error:
            raise StoreError(f"the secret of the keys in {self.path} cannot be kept or read: {error}") from error
        self._prove()

    def __repr__(self) -> str:
        return f"KeyStore({str(self.path)!r})"

    def hasher(self) -> blake2b:
        """Returns a keyed BLAKE2b of 32 bytes that has seen nothing yet."""
        return blake2b(key=self._secret, digest_size=32)

    def create(
        self,
        name: str,
        *,
        tenant: str,
        scopes: Collection[str],
        actor: str,
        now: int,
        team: str = "",
        not_before: int | None = None,
        expires: str | int | None = "365d",
        reason: str = "",
    ) -> Issued:
        """Makes a key.

        Args:
            name: What it is for, in words.
            tenant: Whose it is.
            scopes: What it allows.
            actor: Who makes it.
            now: The present, in microseconds.
            team: Which team of the tenant.
            not_before: When it begins to be valid, in microseconds; None for now.
            expires: How long it is valid from then on, such as `"90d"` or microseconds; None for ever.
            reason: Why, in words.

        Raises:
            InvalidInput: If a value breaks its rule.
            StoreError: If it cannot be kept.
        """
        for what, text in (("name", name), ("tenant", tenant), ("actor", actor)):
            if not text or not text.isprintable():
                raise InvalidInput(what, text, "be a printable text")
        since = now if not_before is None else not_before
        key_id, token = new_token()
        key = Key(
            key_id=key_id,
            name=name,
            tenant=tenant,
            team=team,
            scopes=check_scopes(scopes),
            created=now,
            not_before=since,
            expires=None if expires is None else since + duration(expires),
            digest=self._digest(token),
        )
        with self._database.writing() as connection:
            _insert(connection, key)
            _record(connection, "created", key_id, now=now, actor=actor, reason=reason)
        return Issued(key=key, token=token)

    def rotate(
        self,
        key_id: str,
        *,
        actor: str,
        now: int,
        overlap: str | int = DAY,
        expires: str | int | None = "365d",
        reason: str = "",
    ) -> Issued:
        """Makes a key to follow another; both are good for the overlap, then only the new one is.

        Args:
            key_id: The key to follow; it has not been revoked.
            actor: Who does it.
            now: The present, in microseconds.
            overlap: How long the old one is still good, unless it ends before.
            expires: How long the new one is valid; None for ever.
            reason: Why, in words.

        Raises:
            NotFound: If there is no such key.
            Conflict: If it was revoked or has expired, or was followed already.
        """
        new_id, token = new_token()
        with self._database.writing() as connection:
            old = _one(connection, key_id)
            if old.state(now) in ("revoked", "expired"):
                raise Conflict(f"key {key_id} is {old.state(now)}; create a new one instead")
            followed = connection.execute("SELECT key_id FROM key WHERE replaces = ?", (key_id,)).fetchone()
            if followed:
                raise Conflict(f"key {key_id} was rotated already; its follower is {followed[0]}")
            end = now + duration(overlap)
            end = end if old.expires is None else min(end, old.expires)
            new = replace(
                old,
                key_id=new_id,
                created=now,
                not_before=max(now, old.not_before),
                expires=None if expires is None else now + duration(expires),
                replaces=key_id,
                digest=self._digest(token),
            )
            connection.execute("UPDATE key SET expires = ? WHERE key_id = ?", (end, key_id))
            _insert(connection, new)
            _record(connection, "rotated", key_id, now=now, actor=actor, reason=reason or f"followed by {new_id}")
            _record(connection, "created", new_id, now=now, actor=actor, reason=f"follows {key_id}")
        return Issued(key=new, token=token)

    def revoke(self, key_id: str, *, reason: str, actor: str, now: int) -> Key:
        """Ends a key for good; doing it again changes nothing.

        Raises:
            NotFound: If there is no such key.
            InvalidInput: If no reason is given.
        """
        if not reason or not actor:
            raise InvalidInput("reason, actor", (reason, actor), "be given: they go on record")
        with self._database.writing() as connection:
            key = _one(connection, key_id)
            if key.revoked is None:
                connection.execute("UPDATE key SET revoked = ? WHERE key_id = ?", (now, key_id))
                _record(connection, "revoked", key_id, now=now, actor=actor, reason=reason)
                key = replace(key, revoked=now)
        return key

    def get(self, key_id: str) -> Key:
        """Returns one key.

        Raises:
            NotFound: If there is no such key.
        """
        with self._database.reading() as connection:
            return _one(connection, key_id)

    def keys(self) -> tuple[Key, ...]:
        """Returns all keys, in the order in which they were made."""
        with self._database.reading() as connection:
            return tuple(_select(connection))

    def events(self, key_id: str | None = None) -> tuple[KeyEvent, ...]:
        """Returns what was done, in order; to one key, or to all."""
        names = "revision, time, kind, key_id, actor, reason"
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {names} FROM event ORDER BY revision").fetchall()  # noqa: S608
        found = (KeyEvent(**dict(zip(names.split(", "), row, strict=True))) for row in rows)
        return tuple(event for event in found if key_id is None or event.key_id == key_id)

    def newer(self, revision: int) -> Snapshot | None:
        """Returns all keys where something was done after a revision, else None; does not wait for a writer.

        Raises:
            Conflict: If somebody is writing at this moment.
            StoreError: If the file cannot be read.
        """
        with self._database.reading(wait_seconds=0.0) as connection:
            present = connection.execute("SELECT coalesce(max(revision), 0) FROM event").fetchone()[0]
            if present == revision:
                return None
            return Snapshot(present, {key.key_id.encode(): key for key in _select(connection)})

    def _digest(self, token: str) -> bytes:
        digest = self.hasher()
        digest.update(token.encode())
        return digest.digest()

    def _prove(self) -> None:
        proof = self._digest(_PROOF)
        found = self._database.read("SELECT digest FROM proof")
        if not found:
            with self._database.writing() as connection:
                connection.execute("INSERT INTO proof SELECT ? WHERE NOT EXISTS (SELECT 1 FROM proof)", (proof,))
                found = connection.execute("SELECT digest FROM proof").fetchall()
        if found[0][0] != proof:
            raise StoreError(
                f"{self.path} was made with another secret: pass the one it was made with, or put its "
                ".secret file back; without it every key has to be made anew"
            )


def _kept_secret(path: Path) -> bytes:
    beside = path.with_name(path.name + ".secret")
    if not beside.exists():
        draft = beside.with_name(f".{beside.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            # A link fails where another process was first, and then its secret is the one.
            with contextlib.suppress(FileExistsError):
                beside.hardlink_to(draft)
        finally:
            draft.unlink(missing_ok=True)
    found = beside.read_bytes()
    if not _LEAST_SECRET <= len(found) <= _MOST_SECRET:
        raise StoreError(f"{beside} has {len(found)} bytes and is no secret of a key store: put the right one back")
    return found


def _insert(connection: sqlite3.Connection, key: Key) -> None:
    row = [getattr(key, name) for name in _COLUMNS.split(", ")]
    row[4] = json.dumps(sorted(key.scopes))
    connection.execute(f"INSERT INTO key ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608


def _record(connection: sqlite3.Connection, kind: str, key_id: str, *, now: int, actor: str, reason: str) -> None:
    connection.execute(
        "INSERT INTO event (time, kind, key_id, actor, reason) VALUES (?, ?, ?, ?, ?)",
        (now, kind, key_id, actor, reason),
    )


def _select(connection: sqlite3.Connection, where: str = "1", values: tuple[Any, ...] = ()) -> list[Key]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM key WHERE {where} ORDER BY rowid", values)  # noqa: S608
    found = []
    for row in rows.fetchall():
        fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
        try:
            fields["scopes"] = frozenset(json.loads(fields["scopes"]))
        except json.JSONDecodeError as error:
            raise StoreError(f"key {fields['key_id']} is damaged: its scopes are not JSON; revoke it") from error
        found.append(Key(**fields))
    return found


def _one(connection: sqlite3.Connection, key_id: str) -> Key:
    found = _select(connection, "key_id = ?", (key_id,))
    if not found:
        raise NotFound("key", key_id, [key.key_id for key in _select(connection)])
    return found[0]

"""API keys: what a token looks like, what a key may do, and the check of a request from memory.

A token is `vitok_`, 12 characters of id, `_`, 32 characters of secret (160 bits) and 7 of checksum. The checksum tells
a typo from a stranger without asking anybody; it is no secret and protects nothing. Stored is only a keyed BLAKE2b
(RFC 7693) of the whole token, so a copy of the store lets nobody in, and without the key of the hash not even a guess
can be tried.

A check takes about 1.6 us from memory, and 0.2 us where the token was checked within the last ten seconds
(bench/serving/guard_parts.py); see `KeyRing` for what is kept of it.
"""

import secrets
import threading
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Literal, NamedTuple, Protocol

from vitok.clock import SECOND, duration, isoformat
from vitok.errors import InvalidInput, VitokError

PREFIX = b"vitok_"
# Crockford's base 32 in small letters: no i, l, o or u, which people misread.
_ALPHABET = b"0123456789abcdefghjkmnpqrstvwxyz"
_ID, _SECRET, _CHECK = 12, 32, 7
_LENGTH = len(PREFIX) + _ID + 1 + _SECRET + _CHECK
_ID_AT = slice(len(PREFIX), len(PREFIX) + _ID)
_NEVER = 1 << 62
_KEPT_FOR = 10 * SECOND
_MOST_KEPT = 32_768

Reason = Literal["missing", "malformed", "mistyped", "unknown", "early", "expired", "revoked", "scope", "stale"]
_WORDS: dict[Reason, str] = {
    "missing": "no key was sent; send it as Authorization: Bearer vitok_...",
    "malformed": "this is no vitok key: one has 58 characters and begins with vitok_",
    "mistyped": "the key is mistyped or cut off: its checksum does not fit; copy it once more",
    "unknown": "nobody knows this key; ask whoever runs the service for one",
    "early": "the key is not valid yet",
    "expired": "the key has expired; ask for a new one",
    "revoked": "the key was revoked; ask for a new one",
    "scope": "the key does not allow this; ask for one with the scope",
    "stale": "the list of keys could not be read for too long, so no key is taken",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """An API key as the service knows it: everything but the secret.

    Attributes:
        key_id: The 12 characters after the prefix of its token; no secret.
        name: What it is for, in words.
        tenant: Whose it is; budgets and the watch for extraction add up by it.
        team: Which team of the tenant, or "".
        scopes: What it allows, such as `"decide:fraud"`, `"infer:*"` or `"admin"`.
        created: When it was made, in microseconds.
        not_before: When it begins to be valid.
        expires: When it ends to be valid, not included; None for never.
        revoked: When it was revoked, or None; a revoked key stays so.
        replaces: The key that it was made to follow, or "".
        digest: Keyed BLAKE2b of the token, 32 bytes; never shown.
    """

    key_id: str
    name: str
    tenant: str
    team: str = ""
    scopes: frozenset[str]
    created: int
    not_before: int
    expires: int | None = None
    revoked: int | None = None
    replaces: str = ""
    digest: bytes = field(default=b"", repr=False)

    def allows(self, scope: str) -> bool:
        """Tells whether a scope, such as `"decide:fraud"`, is among its own or under one of its `:*`."""
        if scope in self.scopes:
            return True
        family, mark, _ = scope.partition(":")
        return bool(mark) and family + ":*" in self.scopes

    def state(self, now: int) -> Literal["valid", "early", "expired", "revoked"]:
        """Says what the key is at a time, in microseconds."""
        if self.revoked is not None:
            return "revoked"
        if now < self.not_before:
            return "early"
        return "expired" if self.expires is not None and now >= self.expires else "valid"

    def __str__(self) -> str:
        until = "" if self.expires is None else f" until {isoformat(self.expires)}"
        gone = "" if self.revoked is None else f", revoked {isoformat(self.revoked)}"
        owner = f"{self.tenant}/{self.team}" if self.team else self.tenant
        return f"{self.key_id} {self.name} of {owner}: {' '.join(sorted(self.scopes))}{until}{gone}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a request is not let in; it never holds the token.

    Attributes:
        reason: One word for logs and counters.
        status: The HTTP status: 401, 403 where the key is good and does not allow this, 503 where nobody knows.
        key_id: The key, where the token was really its; else "".
        scope: The scope that was asked for, where that is what lacks.
    """

    reason: Reason
    status: int = 401
    key_id: str = ""
    scope: str = ""

    @property
    def message(self) -> str:
        """What to tell the caller, with what to do next."""
        return _WORDS[self.reason] + (f" {self.scope}" if self.scope else "")

    def headers(self) -> dict[str, str]:
        """Returns the headers of the answer (RFC 6750, section 3)."""
        if self.status == 503:
            return {"retry-after": "5"}
        if self.reason == "missing":
            return {"www-authenticate": "Bearer"}
        error = "insufficient_scope" if self.reason == "scope" else "invalid_token"
        asked = f', scope="{self.scope}"' if self.scope else ""
        return {"www-authenticate": f'Bearer error="{error}"{asked}'}

    def __str__(self) -> str:
        return f"refused ({self.reason}, {self.status}): {self.message}"


class Snapshot(NamedTuple):
    """The keys as of one revision of their store."""

    revision: int
    keys: Mapping[bytes, Key]


class KeySource(Protocol):
    """Where a ring has its keys from."""

    def hasher(self) -> "blake2b":
        """Returns a keyed BLAKE2b of 32 bytes that has seen nothing yet."""
        ...

    def newer(self, revision: int) -> Snapshot | None:
        """Returns the keys where they have changed since a revision, at once or not at all; else None."""
        ...


_MISSING = Refusal(reason="missing")
_MALFORMED = Refusal(reason="malformed")
_MISTYPED = Refusal(reason="mistyped")
_UNKNOWN = Refusal(reason="unknown")
_STALE = Refusal(reason="stale", status=503)


class KeyRing:
    """Checks tokens from memory; asks the store for changes once a `refresh`, never for a request.

    So a new key works, and a revoked one is refused, at most a `refresh` after the store was written, in every
    process. Where the store cannot be read the keys in memory go on being good, and `problem` says why; with
    `stale_after` all are refused once that has lasted so long.

    Tokens that were found good are kept in memory, with their keys, so that the hash of each is not made again for
    every request: for ten seconds, and no longer than until the keys change, one that is kept begins to be too old,
    or the clock goes back. A token that was refused is never kept. The look-up tells nothing of a token by its time:
    it compares a hash that is keyed anew in each process (SipHash), and bytes only where all of that is equal. Whoever
    can read the memory of the process sees the tokens of the last seconds there, as in the requests themselves.

    Args:
        source: The store.
        refresh: How often to look for changes, such as `"1s"` or microseconds.
        stale_after: How long the store may be out of reach; None for any time.

    Example:
        >>> import tempfile
        >>> from vitok.guard import KeyStore
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = KeyStore(folder.name + "/keys.sqlite")
        >>> made = store.create("web shop", tenant="shop", scopes=["decide:fraud"], actor="ann", now=0)
        >>> ring = KeyRing(store)
        >>> ring.check(made.token, "decide:fraud", 1).tenant
        'shop'
        >>> print(ring.check(made.token, "admin", 1))
        refused (scope, 403): the key does not allow this; ask for one with the scope admin
        >>> print(ring.check(made.token[:-1] + "?", "decide:fraud", 1))
        refused (mistyped, 401): the key is mistyped or cut off: its checksum does not fit; copy it once more
        >>> folder.cleanup()
    """

    def __init__(self, source: KeySource, *, refresh: str | int = SECOND, stale_after: str | int | None = None) -> None:
        self._source = source
        self._refresh = duration(refresh)
        self._stale_after = None if stale_after is None else duration(stale_after)
        self._hasher = source.hasher()
        self._snapshot = source.newer(-1) or Snapshot(0, {})
        self._keys = self._snapshot.keys
        # Of no clock yet: the first check looks for changes.
        self._polled = self._next = self._read = _NEVER
        self.problem = ""
        # Tokens that were found good between two times, by scope; replaced as a whole, never emptied, so that a check
        # that began before the keys changed adds to what nobody reads any more.
        self._good: dict[str, dict[bytes, Key]] = {}
        self._since = self._until = 0
        self._lock = threading.Lock()

    @property
    def revision(self) -> int:
        """The revision of the store that the keys in memory are of."""
        return self._snapshot.revision

    def check(self, token: str | bytes | None, scope: str, now: int, *, shown: bytes | None = None) -> Key | Refusal:
        """Decides whether a token may do something.

        Args:
            token: What the caller sent, without `Bearer `; None or empty where nothing came.
            scope: What it is for, such as `"decide:fraud"`.
            now: The present, in microseconds.
            shown: The header that it came in, under which `good` shall have it; None for the token itself.

        Returns:
            The key, or why not. What is wrong with a key (expired, revoked, scope) is told only to who has its
            secret.
        """
        good = self.good(scope, now)
        if good is None:
            return _STALE
        if not token:
            return _MISSING
        if isinstance(token, str):
            try:
                token = token.encode("ascii")
            except UnicodeEncodeError:
                return _MALFORMED
        found = good.get(token)
        if found is not None:
            return found
        key = self._keys.get(token[_ID_AT])
        if key is None:
            return _stranger(token)
        digest = self._hasher.copy()
        digest.update(token)
        if not compare_digest(digest.digest(), key.digest):
            return _stranger(token)
        if key.revoked is not None or now < key.not_before or (key.expires is not None and now >= key.expires):
            return Refusal(reason=key.state(now), key_id=key.key_id)  # type: ignore[arg-type]  # "valid" is excluded
        if scope in key.scopes or key.allows(scope):
            self._keep(token if shown is None else shown, key, good)
            return key
        return Refusal(reason="scope", status=403, key_id=key.key_id, scope=scope)

    def good(self, scope: str, now: int) -> dict[bytes, Key] | None:
        """Returns which tokens were checked lately and may do something at this time, for many requests at once.

        Whoever is not in it has to be checked. It holds for this `now` and no other.

        Args:
            scope: What they are for.
            now: The present, in microseconds.

        Returns:
            The key by the token, or by what was `shown`, not to be changed; None where the list of keys is too old to
            let anybody in.

        Example:
            >>> import tempfile
            >>> from vitok.guard import KeyStore
            >>> folder = tempfile.TemporaryDirectory()
            >>> store = KeyStore(folder.name + "/keys.sqlite")
            >>> made = store.create("web shop", tenant="shop", scopes=["admin"], actor="ann", now=0)
            >>> ring = KeyRing(store)
            >>> header = f"Bearer {made.token}".encode()
            >>> _ = ring.check(made.token, "admin", 1, shown=header)
            >>> ring.good("admin", 1)[header].tenant, ring.good("decide:fraud", 1)
            ('shop', {})
            >>> folder.cleanup()
        """
        # Also where the clock went back, so that a revocation does not wait for it to catch up.
        if not self._polled <= now < self._next and not self._poll(now):
            return None
        if not self._since <= now < self._until:
            self._forget(now)
        found = self._good.get(scope)
        if found is None:
            found = self._good[scope] = {}
        return found

    def _keep(self, shown: bytes, key: Key, good: dict[bytes, Key]) -> None:
        with self._lock:
            self._since = max(self._since, key.not_before)
            if key.expires is not None:
                self._until = min(self._until, key.expires)
            # Spaces and capitals give one token many headers: a bound, lest its owner fills the memory with them.
            if sum(map(len, self._good.values())) >= _MOST_KEPT:
                self._good = {}
            else:
                good[shown] = key

    def _forget(self, now: int) -> None:
        with self._lock:
            self._good, self._since, self._until = {}, now, now + _KEPT_FOR

    def reload(self) -> bool:
        """Asks the store for changes now; returns whether there were any.

        Raises:
            StoreError: If the store cannot be read.
            Conflict: If somebody else is writing it at this moment.
        """
        newer = self._source.newer(self._snapshot.revision)
        if newer is None:
            return False
        self._snapshot, self._keys = newer, newer.keys
        # After the keys: what is found good from now on is so by them.
        self._good = {}
        return True

    def _poll(self, now: int) -> bool:
        # Set first: other threads go on with the old keys meanwhile.
        self._polled, self._next = now, now + self._refresh
        try:
            self.reload()
        except VitokError as error:
            self.problem = str(error)
            if now < self._read:
                self._read = now
            late = self._stale_after is not None and now - self._read > self._stale_after
            if late:
                # Asks again at the next request, so that it ends as soon as the store is back.
                self._next = now
            return not late
        self._read, self.problem = now, ""
        return True

    def __repr__(self) -> str:
        return f"KeyRing({self._source!r}, {len(self._keys)} keys, revision {self.revision})"


def looks_whole(token: str | bytes) -> bool:
    """Tells whether a token is one of ours and free of typos, without knowing any key.

    Every error within four neighbouring characters is found, others but for one in four thousand million (CRC-32).

    Example:
        >>> looks_whole("vitok_not a key")
        False
    """
    raw = token.encode("utf-8") if isinstance(token, str) else token
    return len(raw) == _LENGTH and raw.startswith(PREFIX) and _checksum(raw[:-_CHECK]) == raw[-_CHECK:]


def new_token() -> tuple[str, str]:
    """Makes an id and the token with it, from the system's randomness.

    Example:
        >>> key_id, token = new_token()
        >>> len(token), token[6:18] == key_id, looks_whole(token)
        (58, True, True)
    """
    letters = bytes(secrets.choice(_ALPHABET) for _ in range(_ID + _SECRET))
    body = PREFIX + letters[:_ID] + b"_" + letters[_ID:]
    return letters[:_ID].decode(), (body + _checksum(body)).decode()


def check_scopes(scopes: Collection[str]) -> frozenset[str]:
    """Returns scopes as a set, each `word` or `word:name` or `word:*`.

    Raises:
        InvalidInput: If there are none, or one has another form.

    Example:
        >>> sorted(check_scopes(["infer:*", "admin"]))
        ['admin', 'infer:*']
    """
    if isinstance(scopes, str) or not scopes:
        raise InvalidInput("scopes", scopes, "be a list of at least one", 'Try ["decide:fraud"]')
    for scope in scopes:
        family, mark, name = scope.partition(":")
        whole = family.isascii() and family.replace("_", "").replace("-", "").isalnum()
        named = name == "*" or (bool(name) and name.isascii() and not set(name) & set(' *,:"\\') and name.isprintable())
        if not whole or (mark and not named):
            raise InvalidInput("scopes", scope, "be word, word:name or word:*, without blanks", "Try decide:fraud")
    return frozenset(scopes)


def _checksum(body: bytes) -> bytes:
    left = zlib.crc32(body)
    return bytes(_ALPHABET[left >> shift & 31] for shift in range(30, -1, -5))


def _stranger(token: bytes) -> Refusal:
    if len(token) == _LENGTH and token.startswith(PREFIX):
        return _UNKNOWN if looks_whole(token) else _MISTYPED
    return _MISTYPED if token.startswith(PREFIX) else _MALFORMED

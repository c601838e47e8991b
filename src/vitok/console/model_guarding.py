"""The options of `vitok serve-models` that say who may ask, how often, and from where."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitok.console.option_names import options_named
from vitok.errors import InvalidInput, NotFound
from vitok.guard import AddressList, KeyRing, KeyStore, Limit, Limiter, SharedLimiter
from vitok.serving.guarded import Guard


@dataclass(frozen=True, kw_only=True)
class GuardPlan:
    """Who may ask. What is not given is not looked at.

    Attributes:
        keys: File of the keys, which `vitok keys` makes.
        key_limit: Requests a key, such as `"100/1s"` or `"6000/1m:200"` with a burst; without keys, an address.
        user_limit: Requests a user, likewise.
        user_header: The header that names the user.
        limit_store: Address of the Redis in which several processes count together; None counts in each.
        allow: Networks that may ask; empty for all.
        deny: Networks that may not.
        trust: Proxies whose `X-Forwarded-For` is believed.
    """

    keys: Path | None = None
    key_limit: str | None = None
    user_limit: str | None = None
    user_header: str = "x-user-id"
    limit_store: str | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, text in (("--key-limit", self.key_limit), ("--user-limit", self.user_limit)):
            if text is not None:
                read_limit(option, text)
        if self.limit_store is not None and self.key_limit is None and self.user_limit is None:
            raise InvalidInput("--limit-store", self.limit_store, "go with --key-limit or --user-limit")
        if self.trust and not (self.allow or self.deny):
            raise InvalidInput("--trust-proxy", list(self.trust), "go with --allow or --deny")
        if self.keys is not None and not self.keys.is_file():
            # A new store would let nobody in, and look like one whose path is misspelt.
            raise NotFound("store of keys", str(self.keys))

    @property
    def empty(self) -> bool:
        """Whether nothing is looked at."""
        return not (self.keys or self.key_limit or self.user_limit or self.allow or self.deny)

    def guard(self) -> Guard | None:
        """Makes the guard; None where nothing is looked at.

        Raises:
            StoreError: If the store of keys cannot be read.
            InvalidInput: If an address is none.
        """
        if self.empty:
            return None
        addresses = None
        if self.allow or self.deny:
            with options_named(network="--allow, --deny or --trust-proxy"):
                addresses = AddressList(allow=self.allow, deny=self.deny, trusted=self.trust)
        return Guard(
            keys=None if self.keys is None else KeyRing(KeyStore(self.keys)),
            key_limit=self._limiter("--key-limit", self.key_limit, "key"),
            user_limit=self._limiter("--user-limit", self.user_limit, "user"),
            user_header=self.user_header,
            addresses=addresses,
        )

    def _limiter(self, option: str, text: str | None, name: str) -> Limiter | SharedLimiter | None:
        if text is None:
            return None
        limit = read_limit(option, text, name=name)
        if self.limit_store is None:
            return Limiter(limit)
        with options_named(address="--limit-store"):
            return SharedLimiter(self.limit_store, limit, prefix=f"vitok:models:{name}:")

    def options(self) -> dict[str, object]:
        """Returns it as options of a command line."""
        return {
            "keys": self.keys,
            "key-limit": self.key_limit,
            "user-limit": self.user_limit,
            "user-header": self.user_header,
            "limit-store": self.limit_store,
            "allow": list(self.allow),
            "deny": list(self.deny),
            "trust-proxy": list(self.trust),
        }


def read_limit(option: str, text: str, *, name: str = "default") -> Limit:
    """Reads a limit.

    Args:
        option: What errors call it.
        text: Requests and period, and after a colon how many may come at once.
        name: Name of the limit in headers.

    Raises:
        InvalidInput: If it has another form, or a number is out of range.

    Example:
        >>> print(read_limit("--key-limit", "100/1m:20"))
        100 a 60 s, 20 at once
    """
    rate, slash, rest = text.partition("/")
    period, colon, burst = rest.partition(":")
    if not slash or not rate.isdecimal() or not period or (colon and not burst.isdecimal()):
        raise InvalidInput(option, text, "be requests and a period, such as 100/1s, or 100/1s:20 with a burst")
    try:
        return Limit(int(rate), period, burst=int(burst) if colon else None, name=name)
    except InvalidInput as error:
        raise InvalidInput(option, text, f"be a limit: {error}") from None


def flags(options: dict[str, object]) -> list[str]:
    """Writes options as a command line.

    Example:
        >>> flags({"keys": None, "allow": ["::1", "10.0.0.0/8"], "round": 2, "guarded": True})
        ['--allow', '::1', '--allow', '10.0.0.0/8', '--round', '2', '--guarded']
    """
    found: list[str] = []
    for name, value in options.items():
        values: Sequence[object] = value if isinstance(value, list) else [value]
        for item in values:
            if item is True:
                found.append(f"--{name}")
            elif item is not None and item is not False:
                found += [f"--{name}", str(item)]
    return found

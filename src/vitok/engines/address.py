"""Addresses with hosts, a user and options, such as `redis://user:word@host:6379/0?timeout_ms=50`, taken apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from vitok.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Address:
    """An address, taken apart.

    Attributes:
        scheme: Which engine, in small letters.
        hosts: Host and port of each server, in the order written; none for an embedded engine.
        path: What follows the hosts, without its first slash; for an embedded engine all between `://` and `?`.
        user: The user's name, or "".
        password: The user's password, or ""; never shown.
        options: What follows `?`, by name.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def servers(self) -> str:
        """The hosts as one writes them in an error: without user and password."""
        return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)

    def whole_number(self, name: str, default: int, least: int = 1) -> int:
        """Returns an option that is a whole number.

        Raises:
            InvalidInput: If it is not one, or is less than `least`.
        """
        text = self.options.get(name, "")
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise InvalidInput(f"?{name}= of the address", text, f"be a whole number of at least {least}")
        return int(text)


def scheme_of(url: str, known: Mapping[str, str]) -> str:
    """Returns the scheme of an address.

    Args:
        url: The address.
        known: Example of an address by scheme.

    Raises:
        InvalidInput: If the scheme is not a known one.
    """
    scheme, mark, _ = url.partition("://")
    if not mark or scheme.lower() not in known:
        raise InvalidInput("address", hidden(url), "look like " + " or ".join(known.values()))
    return scheme.lower()


def embedded(url: str, options: tuple[str, ...] = ()) -> Address:
    """Takes the address of an embedded engine apart, such as `lmdb://folder?map_gib=8`.

    Raises:
        InvalidInput: If it names nothing, or has an option that does not exist.

    Example:
        >>> embedded("lmdb://.vitok/online?map_gib=8", ("map_gib",)).path
        '.vitok/online'
    """
    scheme, _, rest = url.partition("://")
    path, _, query = rest.partition("?")
    if not path:
        raise InvalidInput("address", url, "name something after ://", f"Try {scheme}://name")
    return Address(scheme=scheme.lower(), path=path, options=_options(query, options))


def remote(url: str, default_port: int, options: tuple[str, ...] = ()) -> Address:
    """Takes the address of one or more servers apart.

    Raises:
        InvalidInput: If a host is missing, a port is no port, or an option does not exist.

    Example:
        >>> address = remote("redis://reader:a%2Fb@one,two:7000/0?timeout_ms=50", 6379, ("timeout_ms",))
        >>> address.hosts, address.user, address.password, address.servers
        ((('one', 6379), ('two', 7000)), 'reader', 'a/b', 'one:6379,two:7000')
    """
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    login, _, servers = authority.rpartition("@")
    user, _, password = login.partition(":")
    hosts = tuple(_host(url, part, default_port) for part in servers.split(","))
    return Address(
        scheme=scheme.lower(),
        hosts=hosts,
        path=unquote(path),
        user=unquote(user),
        password=unquote(password),
        options=_options(query, options),
    )


def hidden(url: str) -> str:
    """Returns an address as it may be shown: without its user and password.

    Example:
        >>> hidden("redis://user:word@host/0")
        'redis://***@host/0'
    """
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    login, at, servers = place.rpartition("@")
    return f"{scheme}{mark}{'***' if login else ''}{at}{servers}{slash}{path}"


def _host(url: str, text: str, default_port: int) -> tuple[str, int]:
    try:
        parts: SplitResult = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or (port is None and text.endswith(":")):
        raise InvalidInput(
            "address",
            hidden(url),
            "name each server as host or host:port",
            f"Try {hidden(url).partition(':')[0]}://localhost",
        )
    return host, port or default_port


def _options(query: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            rule = "be one of " + ", ".join(known) if known else "not be there: this engine has none"
            raise InvalidInput("option of the address", name, rule)
        found[name] = value
    return found

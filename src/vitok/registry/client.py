"""The registry from afar: what a client of `vitok serve registry` calls, over HTTP and with an API key."""

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from vitok import ids
from vitok.errors import Conflict, GateRefused, InvalidInput, NotFound, ServiceError, StoreError, VitokError
from vitok.registry.change import checked_time
from vitok.registry.gates import Verdict
from vitok.registry.package import Content, Package, check_model_name, contents_of, read_package, write_package
from vitok.registry.stages import CanaryVerdict, Entry, ModelState, Stage, Version
from vitok.registry.storage import Verification

_MSGPACK = "application/msgpack"
_AGAIN = (502, 503, 504)
_PAUSES = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)


class RegistryClient:
    """A registry that others serve. Every change carries a key, so that it counts once however often it is sent.

    Where a server does not answer, the next one is asked, and all of them again for some seconds.

    Args:
        addresses: `http://host:port` of a server or a balancer, or several.
        key: The API key; whose it is counts as the actor.
        actor: Who acts, where the servers ask for no key.
        timeout: Seconds to wait for one answer.
        trusted: File of the certificates that https has to be signed by; None for those of the system.

    Raises:
        InvalidInput: If an address is none.

    Example:
        >>> RegistryClient("http://127.0.0.1:8500")
        RegistryClient('http://127.0.0.1:8500')
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        key: str | None = None,
        actor: str | None = None,
        timeout: float = 30.0,
        trusted: Path | None = None,
    ) -> None:
        self._addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        for address in self._addresses:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InvalidInput("addresses", address, "look like http://host:port")
        if not self._addresses:
            raise InvalidInput("addresses", addresses, "name at least one server")
        self._key = key
        self._actor = actor
        self._timeout = timeout
        self._context = ssl.create_default_context(cafile=None if trusted is None else str(trusted))
        self._first = 0

    def __repr__(self) -> str:
        return f"RegistryClient({', '.join(map(repr, self._addresses))})"

    def models(self) -> tuple[str, ...]:
        """Returns the names of all models, sorted."""
        return tuple(self._json("GET", "/v1/models")["models"])

    def state(self, model: str, *, at: int | None = None) -> ModelState:
        """Returns where a model stands, or stood at a time in microseconds.

        Raises:
            NotFound: If there is no such model.
        """
        found = self._json("GET", _path(model), {"at": None if at is None else checked_time("at", at)})
        del found["latest"], found["shown"]
        versions = tuple(_version(item) for item in found.pop("versions"))
        fewer = found.pop("fewer_approvals")
        return ModelState(
            versions=versions,
            served=tuple(found.pop("served")),
            fewer_approvals=None if fewer is None else (fewer[0], fewer[1]),
            **found,
        )

    def at(self, model: str, time_us: int) -> int | None:
        """Returns the version that was in Production at a time in microseconds, or None.

        Raises:
            InvalidInput: If the time is no whole number, such as a text.
        """
        found = self._json("GET", f"{_path(model)}/at", {"time": checked_time("time_us", time_us)})["version"]
        return None if found is None else int(found)

    def history(self, model: str, *, version: int | None = None, after: int = 0) -> tuple[Entry, ...]:
        """Returns the entries of a model (or of one version), later than entry number `after`, in order."""
        entries: list[Entry] = []
        while True:
            page = self._json("GET", f"{_path(model)}/history", {"version": version, "after": after})
            entries += [Entry(**item) for item in page["entries"]]
            if not page["more"]:
                return tuple(entries)
            after = entries[-1].seq

    def register(
        self,
        model: str,
        files: Mapping[str, Content],
        *,
        run_id: str | None = None,
        reason: str = "registered",
        key: str | None = None,
    ) -> Version:
        """Sends a package and enters it as the next version; see `Registry.register`."""
        request = {
            "model": check_model_name(model),
            "files": contents_of(files),
            "reason": reason,
            "run_id": run_id,
            "key": key or _new_key(),
            "actor": self._actor,
        }
        told = self._send("POST", "/v1/packages", msgspec.msgpack.encode(request), _MSGPACK)
        return _version(json.loads(told))

    def load(self, model: str, version: int | str, folder: str | Path) -> Package:
        """Fetches a version's package into a folder of this machine, every byte checked.

        Args:
            model: Name of the model.
            version: A number, or `"Production"`, `"Staging"`, `"canary"` or `"latest"`.
            folder: Above the packages that are kept here, `<model>/<version>/`; what is there is not fetched again.

        Raises:
            NotFound: If there is no such model, version or package.
            StoreError: If the package is not the one that was registered.
        """
        entry = self.state(model).resolve(version)
        place = Path(folder) / model / str(entry.version)
        if not place.exists():
            path = f"{_path(model)}/versions/{entry.version}/package"
            found = msgspec.msgpack.decode(self._send("GET", path))
            # Another process may fetch it meanwhile.
            with contextlib.suppress(Conflict):
                write_package(
                    place,
                    name=model,
                    version=entry.version,
                    files=found["files"],
                    created=found["created"],
                    kind=found["kind"],
                )
        package = read_package(place)
        if package.digest != entry.digest:
            raise StoreError(f"package {place} is not the one that was registered as {entry.name}")
        return package

    def record_gate(self, model: str, version: int, verdict: Verdict, *, key: str | None = None) -> Entry:
        """Records what a gate decided about a version; see `Ledger.record_gate`."""
        return self._change(model, "gate", key, version=version, verdict=verdict.to_dict())

    def propose(self, model: str, version: int, *, reason: str, key: str | None = None) -> Entry:
        """Proposes a version for Production; see `Ledger.propose`."""
        return self._change(model, "propose", key, version=version, reason=reason)

    def approve(self, model: str, version: int, *, reason: str, key: str | None = None) -> Entry:
        """Approves a proposed version; see `Ledger.approve`."""
        return self._change(model, "approve", key, version=version, reason=reason)

    def require_approvals(self, model: str, needed: int, *, reason: str, key: str | None = None) -> Entry:
        """Says how many people have to approve each version; see `Ledger.require_approvals`."""
        return self._change(model, "approvals", key, needed=needed, reason=reason)

    def promote(
        self,
        model: str,
        version: int,
        stage: Stage,
        *,
        reason: str,
        expected: int | None = None,
        override: str | None = None,
        key: str | None = None,
    ) -> Entry:
        """Moves a version to another stage; see `Ledger.promote`."""
        more = {"expected": expected, "override": override}
        return self._change(model, "promote", key, version=version, stage=stage, reason=reason, **more)

    def rollback(self, model: str, *, reason: str, expected: int | None = None, key: str | None = None) -> Entry:
        """Puts the former version back; see `Ledger.rollback`."""
        return self._change(model, "rollback", key, reason=reason, expected=expected)

    def start_canary(
        self,
        model: str,
        version: int,
        share: float,
        *,
        reason: str,
        expected: int | None = None,
        override: str | None = None,
        key: str | None = None,
    ) -> Entry:
        """Lets a version answer a share of the decisions; see `Ledger.start_canary`."""
        more = {"expected": expected, "override": override}
        return self._change(model, "canary", key, version=version, share=float(share), reason=reason, **more)

    def end_canary(self, model: str, *, verdict: CanaryVerdict, reason: str, key: str | None = None) -> Entry:
        """Ends the running canary; see `Ledger.end_canary`."""
        return self._change(model, "canary-end", key, verdict=verdict, reason=reason)

    def verify(self) -> Verification:
        """Checks the chain of hashes of the whole ledger."""
        return Verification(**self._json("GET", "/v1/verify"))

    def _change(self, model: str, operation: str, key: str | None, **fields: Any) -> Entry:
        given = {name: value for name, value in {**fields, "actor": self._actor}.items() if value is not None}
        body = json.dumps({**given, "key": key or _new_key()}).encode()
        return Entry(**json.loads(self._send("POST", f"{_path(model)}/{operation}", body)))

    def _json(self, method: str, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        asked = urlencode({name: value for name, value in (query or {}).items() if value is not None})
        found: dict[str, Any] = json.loads(self._send(method, f"{path}?{asked}" if asked else path))
        return found

    def _send(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        headers = {} if body is None else {"Content-Type": kind}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        wrong = ""
        for pause in _PAUSES:
            time.sleep(pause)
            for _ in self._addresses:
                address = self._addresses[self._first % len(self._addresses)]
                try:
                    status, answer = self._asked(address, method, path, body, headers)
                except (OSError, http.client.HTTPException) as error:
                    wrong = f"{address}: {error or type(error).__name__}"
                else:
                    if status not in _AGAIN:
                        return _checked(status, answer, path)
                    wrong = f"{address}: {_detail(answer)}"
                self._first += 1
        raise ServiceError(f"no server of the registry answers {method} {path}; the last said {wrong}")

    def _asked(
        self, address: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        parts = urlsplit(address)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=self._timeout, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self._timeout)
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _checked(status: int, answer: bytes, path: str) -> bytes:
    if status < 400:
        return answer
    detail = _detail(answer)
    title = _field(answer, "title")
    error: VitokError
    match status:
        case 404:
            error = NotFound("what was asked for", path)
        case 409:
            error = GateRefused() if title == "Gate refused" else Conflict()
        case 400 | 413 | 422:
            error = InvalidInput(_field(answer, "field") or "request", path, detail)
        case _:
            error = ServiceError()
    # The words are the server's: it knows what it has.
    error.args = (detail,)
    raise error


def _detail(answer: bytes) -> str:
    return _field(answer, "detail") or answer[:200].decode(errors="replace")


def _field(answer: bytes, name: str) -> str:
    try:
        found = json.loads(answer)
    except ValueError:
        return ""
    return str(found.get(name) or "") if isinstance(found, dict) else ""


def _path(model: str) -> str:
    return f"/v1/models/{quote(check_model_name(model))}"


def _version(fields: dict[str, Any]) -> Version:
    return Version(**{**fields, "approvers": tuple(fields["approvers"])})


def _new_key() -> str:
    return f"client-{ids.text(ids.uuid7())}"

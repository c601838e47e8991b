"""Models and versions in one process: loaded when first asked for, swapped whole, let go when room is short."""

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vitok.errors import InvalidInput, NotFound, ServiceError, VitokError
from vitok.registry import Registry
from vitok.serving.encodings import Encoded
from vitok.serving.guarded import Outer, guard_in
from vitok.serving.inference import Hosted, InferEndpoint
from vitok.serving.messages import Endpoint
from vitok.serving.opening import KeptEndpoint, Opening
from vitok.serving.response_cache import ResponseCache
from vitok.serving.runtime import PackageFiles, Runtime
from vitok.serving.tracing import Tracing

MAX_BODY = 8 << 20
_GROWN = 3  # a loaded model takes about three times the bytes of its file

Dress = Callable[[Hosted], None]
"""Gives a model what goes with its answers: rules, a recorder."""


class Catalogue(Protocol):
    """Where models come from: names, which version of each is in force, and the files of a version."""

    def names(self) -> Sequence[str]:
        """Returns the models there are."""
        ...

    def versions(self, name: str) -> Sequence[str]:
        """Returns a model's versions; empty for an unknown one."""
        ...

    def current(self, name: str) -> str:
        """Returns the version in force; raises `NotFound` where there is none."""
        ...

    def package(self, name: str, version: str) -> PackageFiles | Path:
        """Returns the files of a version; raises `NotFound` where there is none."""
        ...

    def revision(self) -> object:
        """Returns something that differs once anything has changed; it is asked many times a second."""
        ...


class RegistryCatalogue:
    """The models of a registry, each by the version that has a stage.

    Args:
        registry: The registry.
        stage: Which version is in force: `"Production"`, `"Staging"`, `"canary"` or `"latest"`.
    """

    def __init__(self, registry: Registry, *, stage: str = "Production") -> None:
        self._registry = registry
        self._stage = stage

    def names(self) -> Sequence[str]:
        """Returns the models of the ledger."""
        return self._registry.ledger.models()

    def versions(self, name: str) -> Sequence[str]:
        """Returns the numbers of a model's versions."""
        return [str(version.version) for version in self._registry.state(name).versions]

    def current(self, name: str) -> str:
        """Returns the version that has the stage."""
        state = self._registry.state(name)
        if not state.versions:
            raise NotFound("model", name, self.names())
        return str(state.resolve(self._stage).version)

    def package(self, name: str, version: str) -> PackageFiles:
        """Reads a version's package and checks every byte of it."""
        if not version.isdecimal():
            raise NotFound(f"version of {name}", version, self.versions(name))
        return self._registry.load(name, int(version))

    def revision(self) -> object:
        """Returns the number of the ledger's last entry."""
        return self._registry.ledger.revision()


class FolderCatalogue:
    """Models in folders, `<folder>/<name>/<version>/model.onnx`; the version with the highest number is in force.

    Args:
        folder: The folder of all.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for version in ("1", "10", "9"):
        ...         Path(folder, "fraud", version).mkdir(parents=True)
        ...     FolderCatalogue(Path(folder)).current("fraud")
        '10'
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise NotFound("folder of models", str(folder))

    def names(self) -> Sequence[str]:
        """Returns the names of the folders that have a version."""
        found = sorted(item.name for item in self._folder.iterdir() if item.is_dir() and not item.name.startswith("."))
        return [name for name in found if self.versions(name)]

    def versions(self, name: str) -> Sequence[str]:
        """Returns the names of a model's folders that are numbers."""
        if not name or "/" in name or name.startswith("."):
            return []
        folder = self._folder / name
        if not folder.is_dir():
            return []
        return sorted((item.name for item in folder.iterdir() if item.name.isdecimal()), key=int)

    def current(self, name: str) -> str:
        """Returns the highest number."""
        versions = self.versions(name)
        if not versions:
            if name and "/" not in name and not name.startswith(".") and (self._folder / name).is_dir():
                raise NotFound(f"version of {name}, in a folder named by a number, such as", f"{name}/1")
            raise NotFound("model", name, self.names())
        return versions[-1]

    def package(self, name: str, version: str) -> Path:
        """Returns the folder of a version."""
        if version not in self.versions(name):
            raise NotFound(f"version of {name}", version, self.versions(name))
        return self._folder / name / version

    def revision(self) -> object:
        """Returns the names of all versions, and when a file came or went: one may be looked at half written."""
        return tuple(
            (name, version, _changed(self._folder / name / version))
            for name in self.names()
            for version in self.versions(name)
        )


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:  # it went between two looks
        return 0


class ModelHost:
    """The models that one process serves.

    A model is asked for by its name, and then the version in force answers, whichever that is by then; or by name
    and version. It is loaded once, however many ask at the same time, checked on its own examples, and warmed up
    before it answers anything. Loading takes long for an event loop: call `get` and `follow` from a thread.

    Args:
        catalogue: Where models come from.
        max_bytes: Most bytes that loaded models may take, by the size of their files times three; where another
            one needs room, the model that was used the longest time ago goes, and is loaded anew when asked for.
        dress: Gives each model what goes with its answers, when it is first loaded.
        pinned: Names that are loaded at once by `start` and never let go.
        admit: Looks at each version before it answers; one for which it raises `VitokError` does not.
        guard: Stands before every model, whichever door a request comes by: a `Guard`, or whatever else has its
            `before`; None for nothing.
        max_body: Longest body, in bytes, that a compressed one may become.
        deadline: Seconds within which an answer is of use, where a request does not say.
        queue: How each model's queue is made, as for `Hosted`.
        cache: Makes the response cache of a model that takes one matrix of rows; None for no cache.
        tracing: Which requests are traced; None for none.
        problems: Says, by name, why something around the models keeps them from answering at present, such as a log
            that cannot be written; then the service is not ready.

    Attributes:
        endpoints: Path to endpoint of all that is loaded, as a door answers it: with the guard before it.
        guard: The guard among that; None where there is none.
        problems: What keeps models from answering at present.
        failures: Name to what went wrong when its newest version was loaded; the one before goes on answering.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     host = ModelHost(FolderCatalogue(Path(folder)))
        ...     host.get("fraud")
        Traceback (most recent call last):
        vitok.errors.NotFound: model 'fraud' does not exist; there is: nothing yet
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        max_bytes: int = 4 << 30,
        dress: Dress | None = None,
        pinned: Sequence[str] = (),
        admit: Callable[[Runtime], None] | None = None,
        guard: Outer | None = None,
        max_body: int = MAX_BODY,
        deadline: float = 1.0,
        queue: Mapping[str, Any] | bool | None = None,
        cache: Callable[[], ResponseCache] | None = None,
        tracing: Tracing | None = None,
        problems: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        for field, value in (("max_bytes", max_bytes), ("max_body", max_body)):
            if value < 1:
                raise InvalidInput(field, value, "be at least 1")
        self.catalogue = catalogue
        self.max_bytes = max_bytes
        self.pinned = tuple(pinned)
        self.guard = guard_in(guard)
        self._outer = guard
        self.max_body = max_body
        self.endpoints: dict[str, Endpoint] = {}
        self.failures: dict[str, str] = {}
        self.swaps = 0
        self.evictions = 0
        self._dress = dress
        self._admit = admit
        self._options: dict[str, Any] = {"deadline": deadline, "queue": queue, "tracing": tracing}
        self._cache = cache
        self.problems = problems
        self._bare: dict[str, InferEndpoint] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._watching: list[Callable[[], object]] = []
        self._hosted: dict[tuple[str, str | None], Hosted] = {}
        self._used: dict[tuple[str, str | None], tuple[int, int]] = {}
        self._tick = 0
        self._lock = threading.RLock()
        self._revision: object = None

    def start(self) -> None:
        """Loads what is pinned.

        Raises:
            VitokError: If one of them cannot be loaded.
        """
        for name in self.pinned:
            self.get(name)
        self._revision = self.catalogue.revision()

    def get(self, name: str, version: str | None = None) -> Hosted:
        """Returns a model, loaded.

        Raises:
            NotFound: If there is no such model or version.
            ServiceError: If it cannot be run, or there is no room for it.
        """
        found = self._hosted.get((name, version))
        if found is not None:
            return found
        with self._lock:
            found = self._hosted.get((name, version))
            if found is None:
                found = self._open(name, version)
            return found

    def loaded(self) -> list[Hosted]:
        """Returns what is loaded."""
        return list(self._hosted.values())

    def by_path(self) -> dict[str, Hosted]:
        """Returns what is loaded, by the path of its requests."""
        return {path: endpoint.hosted for path, endpoint in list(self._bare.items())}

    def endpoint(
        self, name: str, version: str | None = None, *, entered: Callable[[], object] = lambda: None
    ) -> Endpoint:
        """Returns what answers for a model, with the guard before it: the model, or what loads it for whoever may ask.

        Args:
            name: Name of the model.
            version: Its version; by default the one in force.
            entered: Called on the event loop once the model was loaded for a request, or could not be.
        """
        found = self.endpoints.get(_path(name, version))
        return self._dressed(self._again(name, version, entered), name) if found is None else found

    def on_change(self, callback: Callable[[], object]) -> None:
        """Has `callback` called whenever a model was loaded or let go, on whatever thread that happens."""
        self._watching.append(callback)

    def _tell(self) -> None:
        for callback in self._watching:
            callback()

    def unload(self, name: str) -> None:
        """Lets a model go, with all its versions; the next request for it loads it anew.

        Raises:
            NotFound: If it is not loaded.
        """
        with self._lock:
            keys = [key for key in self._hosted if key[0] == name]
            if not keys:
                raise NotFound("loaded model", name, sorted({key[0] for key in self._hosted}))
            for key in keys:
                self._drop(key)

    def close(self) -> None:
        """Finishes what waits in the queues of all models."""
        for hosted in self.loaded():
            hosted.close()

    def follow(self) -> list[str]:
        """Swaps every loaded model whose version in force has changed; call it a few times a second.

        A version that cannot be loaded is reported in `failures`, and the one before goes on.

        Returns:
            The versions that answer from now on, such as `"fraud/4"`.
        """
        revision = self.catalogue.revision()
        if revision == self._revision:
            return []
        swapped = []
        with self._lock:
            for (name, version), hosted in list(self._hosted.items()):
                if version is None:
                    try:
                        swapped += self._swap(name, hosted)
                    except VitokError as error:
                        self.failures[name] = str(error)
        self._revision = revision
        return swapped

    @property
    def bytes(self) -> int:
        """Bytes that the loaded models take, as far as their files tell."""
        # A version that answers under two paths is one runtime.
        return _GROWN * sum({id(item.runtime): item.runtime.size for item in self._hosted.values()}.values())

    def _open(self, name: str, version: str | None) -> Hosted:
        number = version or self.catalogue.current(name)
        runtime = self._load(name, number)
        cache = self._cache() if self._cache is not None and runtime.takes_rows else None
        hosted = Hosted(name, runtime, cache=cache, **self._options)
        if self._dress is not None:
            self._dress(hosted)
        again = functools.partial(self._again, name, version)
        self._hosted[name, version] = hosted
        self._enter(KeptEndpoint(hosted, version=version, again=again))
        self._tell()
        return hosted

    def _enter(self, endpoint: InferEndpoint) -> None:
        self._bare[endpoint.path] = endpoint
        self.endpoints[endpoint.path] = self._dressed(endpoint, endpoint.hosted.name)

    def _dressed(self, endpoint: Endpoint, name: str) -> Endpoint:
        # The guard is outside, so that a stranger has nothing inflated and nothing loaded.
        read = Encoded(endpoint, max_body=self.max_body)
        return read if self._outer is None else self._outer.before(read, f"infer:{name}")

    def _again(self, name: str, version: str | None, entered: Callable[[], object] = lambda: None) -> Opening:
        path = _path(name, version)

        def load() -> InferEndpoint:
            self.get(name, version)
            found = self._bare.get(path)
            # None where it was let go in the same moment: there is not enough room for what is asked for.
            if found is None:
                raise ServiceError(f"{name} was let go before it could answer; raise max_bytes")
            return found

        return Opening(path, load, entered=entered, tasks=self._opening)

    def _swap(self, name: str, hosted: Hosted) -> list[str]:
        number = self.catalogue.current(name)
        if hosted.runtime.version == f"{name}/{number}":
            return []
        runtime = self._load(name, number)
        if (runtime.inputs, runtime.outputs) != (hosted.runtime.inputs, hosted.runtime.outputs) and hosted.recorder:
            raise ServiceError(
                f"{runtime.version} takes or gives other tensors than {hosted.runtime.version}; unload it"
            )
        hosted.replace(runtime)
        self.failures.pop(name, None)
        self.swaps += 1
        return [runtime.version]

    def _load(self, name: str, number: str) -> Runtime:
        for hosted in self._hosted.values():
            if hosted.runtime.version == f"{name}/{number}":
                return hosted.runtime
        runtime = Runtime.load(self.catalogue.package(name, number), version=f"{name}/{number}")
        if self._admit is not None:
            self._admit(runtime)
        self._make_room(_GROWN * runtime.size, runtime.version)
        return runtime

    def _make_room(self, needed: int, version: str) -> None:
        if needed > self.max_bytes:
            raise ServiceError(f"{version} takes about {needed:,} bytes, more than max_bytes ({self.max_bytes:,})")
        while self.bytes + needed > self.max_bytes:
            idle = [key for key in self._by_use() if key[0] not in self.pinned]
            if not idle:
                raise ServiceError(f"{version} takes about {needed:,} bytes, and all that is loaded is pinned")
            self._drop(idle[0])
            self.evictions += 1

    def _by_use(self) -> list[tuple[str, str | None]]:
        # The hot path does not stop to say when a model was used: its count has risen since the last look, or not.
        self._tick += 1
        for key, hosted in self._hosted.items():
            requests = hosted.counts["requests"]
            before = self._used.get(key)
            if before is None or before[0] != requests:
                self._used[key] = (requests, self._tick)
        return sorted(self._hosted, key=lambda key: self._used[key][1])

    def _drop(self, key: tuple[str, str | None]) -> None:
        path = _path(*key)
        self.endpoints.pop(path, None)
        endpoint = self._bare.pop(path)
        del self._hosted[key]
        self._used.pop(key, None)
        # The doors first, so that hardly anybody comes to an endpoint that is gone.
        self._tell()
        if isinstance(endpoint, KeptEndpoint):
            endpoint.leave()


def _path(name: str, version: str | None) -> str:
    return f"/v2/models/{name}/infer" if version is None else f"/v2/models/{name}/versions/{version}/infer"

"""Models and versions in one process: loaded when first asked for, swapped whole, let go when room is short."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from vitok.errors import InvalidInput, NotFound, ServiceError, VitokError
from vitok.registry import Registry
from vitok.serving.inference import Hosted, InferEndpoint
from vitok.serving.runtime import PackageFiles, Runtime

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
        """Returns the names of the folders."""
        return sorted(item.name for item in self._folder.iterdir() if item.is_dir() and not item.name.startswith("."))

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

    Attributes:
        endpoints: Path to endpoint of all that is loaded.
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
    ) -> None:
        if max_bytes < 1:
            raise InvalidInput("max_bytes", max_bytes, "be at least 1")
        self.catalogue = catalogue
        self.max_bytes = max_bytes
        self.pinned = tuple(pinned)
        self.endpoints: dict[str, InferEndpoint] = {}
        self.failures: dict[str, str] = {}
        self.swaps = 0
        self.evictions = 0
        self._dress = dress
        self._admit = admit
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
        return {path: endpoint.hosted for path, endpoint in list(self.endpoints.items())}

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
        hosted = Hosted(name, runtime)
        if self._dress is not None:
            self._dress(hosted)
        endpoint = InferEndpoint(hosted, version=version)
        self._hosted[name, version] = hosted
        self.endpoints[endpoint.path] = endpoint
        return hosted

    def _swap(self, name: str, hosted: Hosted) -> list[str]:
        number = self.catalogue.current(name)
        if hosted.runtime.version == f"{name}/{number}":
            return []
        runtime = self._load(name, number)
        if (runtime.inputs, runtime.outputs) != (hosted.runtime.inputs, hosted.runtime.outputs) and hosted.recorder:
            raise ServiceError(
                f"{runtime.version} takes or gives other tensors than {hosted.runtime.version}; unload it"
            )
        hosted.runtime = runtime
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
        self._hosted.pop(key).close()
        self._used.pop(key, None)
        name, version = key
        middle = "" if version is None else f"/versions/{version}"
        self.endpoints.pop(f"/v2/models/{name}{middle}/infer", None)

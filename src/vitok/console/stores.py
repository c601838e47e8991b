"""Opening what a home folder holds, for reading: nothing is made where nothing is, and everything is closed again."""

import contextlib
import datetime as dt
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitok.errors import NotFound
from vitok.features.catalogue import Catalogue
from vitok.loop import Records
from vitok.loop.release_book import ReleaseBook
from vitok.monitoring import Alerts, EstimateLedger, ReferenceProfile, Sketches
from vitok.monitoring.delivery import open_delivery
from vitok.monitoring.silences import Silences
from vitok.policies import TierPolicy
from vitok.registry import Ledger, ModelState, Package, Registry, Version, read_package
from vitok.registry.attachment import Attachment, attachment_of
from vitok.systems.fraud.messages import SYSTEM

_KEPT_PACKAGES = 16
_KEPT_REGISTRIES = 16
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


@contextlib.contextmanager
def ledger(home: Path) -> Iterator[Ledger | None]:
    """Opens the ledger that a home goes by; None where no version was ever registered."""
    attached = attachment_of(home)
    if attached is not None and attached.folder is None:
        yield _shared(home, attached).ledger
        return
    path = _owner(home, attached) / "registry" / "ledger.sqlite"
    if not path.exists():
        yield None
        return
    with contextlib.closing(Ledger(path)) as opened:
        yield opened


@contextlib.contextmanager
def registry(home: Path) -> Iterator[Registry]:
    """Opens the registry that a home goes by."""
    attached = attachment_of(home)
    if attached is not None and attached.folder is None:
        yield _shared(home, attached)
        return
    with contextlib.closing(Registry(home)) as opened:
        yield opened


def _owner(home: Path, attached: Attachment | None) -> Path:
    return home if attached is None or attached.folder is None else attached.folder


@functools.lru_cache(maxsize=_KEPT_REGISTRIES)
def _shared(home: Path, _attached: Attachment) -> Registry:
    # Following a database takes a connection and a thread: not one for each page.
    return Registry(home)


@contextlib.contextmanager
def sketches(home: Path) -> Iterator[Sketches | None]:
    """Opens the sketches; None where nobody sketched yet."""
    path = home / "monitoring" / "sketches.sqlite"
    if not path.exists():
        yield None
        return
    opened = Sketches(path)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def alert_store(home: Path) -> Iterator[Alerts | None]:
    """Opens the alerts; None where nobody watched yet."""
    path = home / "monitoring" / "alerts.sqlite"
    if not path.exists():
        yield None
        return
    opened = Alerts(path)
    try:
        yield opened
    finally:
        opened.close()


def records(home: Path) -> Records:
    """Returns the records of incidents and releases."""
    return Records(home)


def state(home: Path) -> ModelState:
    """Returns where the model stands; the empty state where nothing was registered."""
    with ledger(home) as opened:
        return ModelState(model=SYSTEM) if opened is None else opened.state(SYSTEM)


def number_of(version: str) -> int | None:
    """Returns the number in a version's name such as `"fraud/3"`; None for rules and for other models."""
    model, _, number = version.rpartition("/")
    return int(number) if model == SYSTEM and number.isdecimal() and len(number) < 10 else None


def package(home: Path, version: Version) -> Package:
    """Reads a version's package.

    Raises:
        StoreError: If it is not what was registered.
        NotFound: If it is not there.
    """
    attached = attachment_of(home)
    if attached is not None and attached.folder is None:
        # Not kept here: the folder of those in use may let go of its files.
        return _shared(home, attached).load(version.model, version.version)
    return _package(_owner(home, attached), version)


# A registered package never changes, so its digest stands for its bytes.
@functools.lru_cache(maxsize=_KEPT_PACKAGES)
def _package(owner: Path, version: Version) -> Package:
    found = read_package(owner / "registry" / "packages" / version.path)
    if found.digest != version.digest:
        raise NotFound("package", f"{found.name}/{found.version} as it was registered", [found.digest])
    return found


@functools.lru_cache(maxsize=_KEPT_PACKAGES * 4)
def _document(home: Path, version: Version, name: str) -> Any:
    found = package(home, version)
    return found.json(name) if name in found else None


def document(home: Path, version: Version, name: str) -> Any:
    """Reads a JSON file of a version's package; None where it has none of that name."""
    return _document(home, version, name)


@functools.lru_cache(maxsize=_KEPT_PACKAGES)
def _profile(home: Path, version: Version) -> ReferenceProfile | None:
    found = _document(home, version, "profile.json")
    return None if found is None else ReferenceProfile.from_dict(found)


def profile(home: Path, version: Version) -> ReferenceProfile | None:
    """Returns the reference profile of a version, or None where its package has none."""
    return _profile(home, version)


def policy(home: Path, version: Version) -> TierPolicy | None:
    """Returns the policy of a version, or None where its package has none."""
    found = document(home, version, "policy.json")
    return None if found is None else TierPolicy.from_dict(found)


def catalogue(home: Path) -> Catalogue:
    """Returns the catalogue of definitions; an empty one where nothing was ever registered."""
    return Catalogue(home / "features")


def logs(home: Path) -> Path | None:
    """Returns the folder above both logs; None where nothing was ever decided."""
    folder = home / "log"
    return folder if (folder / "decisions").is_dir() else None


def microseconds(moment: dt.datetime) -> int:
    """Converts a moment of a frame to microseconds."""
    return (moment - _EPOCH) // _MICROSECOND


@contextlib.contextmanager
def release_book(home: Path) -> Iterator[ReleaseBook | None]:
    """Opens the releases by plan; None where there was none yet."""
    if not (home / "loop" / "releases.sqlite").exists():
        yield None
        return
    with contextlib.closing(ReleaseBook(home)) as book:
        yield book


@contextlib.contextmanager
def silences(home: Path) -> Iterator[Silences | None]:
    """Opens the silences; None where no message was ever written."""
    path = home / "monitoring" / "delivery.sqlite"
    if not path.exists():
        yield None
        return
    with contextlib.closing(open_delivery(path)) as database:
        yield Silences(database)


@contextlib.contextmanager
def estimates(home: Path) -> Iterator[EstimateLedger | None]:
    """Opens the ledger of estimates; None where nothing was ever estimated."""
    path = home / "monitoring" / "estimates.sqlite"
    if not path.exists():
        yield None
        return
    opened = EstimateLedger(path)
    try:
        yield opened
    finally:
        opened.close()

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.features.definition_cases import ACCOUNT, CARD, EVERYTHING, FEATURES, PAYMENTS, small

from vitok.clock import EventClock
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.features import FeatureSet, View
from vitok.features.catalogue import FILE, Catalogue, unused
from vitok.features.described import SetVersion, Use

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.features.definition_cases import small
from vitok.features import FeatureSet
from vitok.features.catalogue import Catalogue
catalogue = Catalogue({folder!r})
print("ready", flush=True)
sys.stdin.readline()
for number in range({first}, {last}):
    catalogue.uses(model=f"{name}/{{number}}", features=FeatureSet(views=(small(f"{{number + 1}}m"),)))
    print(number, flush=True)
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "features", clock=EventClock(1_000_000))


def one(*windows: str, owner: str = "") -> FeatureSet:
    return FeatureSet(views=(small(*windows, owner=owner),))


def test_nothing_is_made_by_reading(catalogue: Catalogue) -> None:
    assert catalogue.views() == catalogue.sets() == catalogue.models() == catalogue.unused() == ()
    with pytest.raises(NotFound, match="nothing yet"):
        catalogue.view("card")
    assert not catalogue.folder.exists()


def test_everything_is_read_back_by_another(catalogue: Catalogue) -> None:
    found = catalogue.register(FEATURES, name="fraud", actor="ann")
    assert found.version == FEATURES.version
    other = Catalogue(catalogue.folder)
    assert [item.name for item in other.views()] == ["account", "card", "place"]
    card = other.view("card")
    assert (card.version, card.number, card.actor, card.registered) == (EVERYTHING.version, 1, "ann", 1_000_000)
    assert card.view.version == EVERYTHING.version
    assert (card.view.owner, card.view.tags, card.view.fresh_within) == ("risk team", ("velocity", "pii"), "15m")
    assert other.set("fraud").fingerprints == SetVersion.of(FEATURES).fingerprints
    assert other.owners() == {"": ("place",), "accounts team": ("account",), "risk team": ("card",)}


def test_the_same_again_adds_nothing(catalogue: Catalogue) -> None:
    catalogue.uses(model="fraud/1", features=FEATURES)
    before = (catalogue.folder / FILE).read_bytes()
    catalogue.register(FEATURES, name="fraud")
    catalogue.register_view(EVERYTHING)
    catalogue.uses(model="fraud/1", features=FEATURES)
    assert Catalogue(catalogue.folder).register(FEATURES, name="fraud").version == FEATURES.version
    assert (catalogue.folder / FILE).read_bytes() == before


def test_change_is_a_new_version_beside_the_old(catalogue: Catalogue) -> None:
    first, second = small("1h"), small("1h", "7d")
    catalogue.register(one("1h"))
    catalogue.register(one("1h", "7d"))
    assert [item.version for item in catalogue.versions("card")] == [first.version, second.version]
    assert catalogue.view("card").version == second.version
    assert catalogue.view("card", 1).view.feature_names == ("card_spent_1h",)
    assert catalogue.view("card", "1") == catalogue.view("card", first.version[:6])
    assert [item.version for item in catalogue.set_versions("features")] == [one("1h").version, one("1h", "7d").version]
    assert catalogue.set("features", 1).names == ("card_spent_1h",)
    found = catalogue.diff("card", 1, 2)
    assert (found.added, found.values_change) == (("card_spent_7d",), False)
    assert catalogue.diff("features", 1, 2).added == ("card_spent_7d",)


def test_change_of_words_is_a_version_of_the_same_hash(catalogue: Catalogue) -> None:
    catalogue.register(one("1h", owner="ann"))
    catalogue.register(one("1h", owner="bob"))
    assert [item.number for item in catalogue.versions("card")] == [1, 2]
    assert len({item.version for item in catalogue.versions("card")}) == 1
    assert catalogue.view("card", catalogue.view("card").version).view.owner == "bob"
    assert [view.owner for view in catalogue.set("features").views] == ["bob"]
    assert len(catalogue.set_versions("features")) == 1
    assert str(catalogue.diff("card", 1, 2).fields[0]) == "owner: ann -> bob"


def test_going_back_is_not_a_third_version(catalogue: Catalogue) -> None:
    for windows in (("1h",), ("7d",), ("1h",)):
        catalogue.register(one(*windows))
    found = Catalogue(catalogue.folder)
    assert len(found.versions("card")) == 2
    assert found.view("card").number == 1
    assert found.set("features").version == one("1h").version


def test_models_pin_what_they_were_made_with(catalogue: Catalogue) -> None:
    catalogue.uses(model="fraud/1", features=one("1h", "1d"))
    catalogue.uses(model="fraud/2", features=one("1h", "7d"))
    assert catalogue.pins("fraud/1") == {"card": small("1h", "1d").version}
    assert (
        catalogue.users("card")
        == catalogue.users("card_spent_1h")
        == catalogue.users("fraud")
        == (
            "fraud/1",
            "fraud/2",
        )
    )
    assert catalogue.users("card", small("1h", "1d").version) == catalogue.users("card_spent_1d") == ("fraud/1",)
    with pytest.raises(Conflict, match="another number"):
        catalogue.uses(model="fraud/1", features=one("30d"))
    with pytest.raises(NotFound, match="fraud/1, fraud/2"):
        catalogue.pins("fraud/3")
    with pytest.raises(NotFound):
        catalogue.users("nothing")


def test_unused_features(catalogue: Catalogue) -> None:
    catalogue.uses(model="fraud/1", features=one("1h", "1d"))
    catalogue.register(one("1h", "7d", owner="ann"), name="fraud")
    found = catalogue.unused()
    assert [(item.name, item.view, item.owner, item.formerly) for item in found] == [
        ("card_spent_7d", "card", "ann", ())
    ]
    assert [item.name for item in catalogue.unused(models=())] == ["card_spent_1h", "card_spent_7d"]
    other = FeatureSet(views=(small("1h", column="fee"),))
    (changed,) = unused(SetVersion.of(other), [Use(model="fraud/1", features=SetVersion.of(one("1h")))])
    assert changed.formerly == ("fraud/1",)
    assert "other definitions of it serve fraud/1" in str(changed)


def test_input_of_a_used_function_is_used() -> None:
    chosen = FeatureSet(request=("amount",), views=(EVERYTHING,), on_demand=FEATURES.on_demand, select=("ratio",))
    left = unused(SetVersion.of(FEATURES), [Use(model="m/1", features=SetVersion.of(chosen))])
    names = {item.name for item in left}
    assert not names & {"amount", "ratio", "card_amount_mean_7d"}
    assert {"is_new", "card_spent_1h", "account_is_vip"} <= names


@pytest.mark.parametrize(
    ("version", "error"),
    [("abcd", NotFound), ("7", NotFound), ("ab", NotFound), (0, NotFound), ("", NotFound)],
)
def test_unknown_versions(catalogue: Catalogue, version: str | int, error: type[Exception]) -> None:
    catalogue.register(one("1h"))
    with pytest.raises(error, match=small("1h").version):
        catalogue.view("card", version)


def test_names_are_checked(catalogue: Catalogue) -> None:
    with pytest.raises(InvalidInput):
        catalogue.register(FEATURES, name="")
    with pytest.raises(InvalidInput):
        catalogue.uses(model="", features=FEATURES)
    catalogue.register(one("1h"))
    with pytest.raises(NotFound, match="card, features"):
        catalogue.diff("nothing", 1, 2)


def test_half_a_line_is_no_line(catalogue: Catalogue) -> None:
    # Every place at which a process may die while it writes.
    catalogue.register(one("1h"))
    path = catalogue.folder / FILE
    first = path.read_bytes()
    catalogue.register(one("7d"))
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(first), len(whole), 7):
        path.write_bytes(whole[:length])
        torn = Catalogue(catalogue.folder)
        assert torn.view("card").version in (small("1h").version, small("7d").version)
        assert torn.register(one("30d")).version == one("30d").version
        kept = max(end for end in ends if end <= length)
        assert path.read_bytes().startswith(whole[:kept])
        assert Catalogue(catalogue.folder).view("card").version == small("30d").version


def test_changed_past_is_noticed(catalogue: Catalogue) -> None:
    catalogue.register(one("1h", owner="ann"))
    catalogue.register(one("7d"))
    path = catalogue.folder / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0].replace(b"ann", b"bob") + b"".join(lines[1:]))
    with pytest.raises(StoreError, match="at byte 0"):
        Catalogue(catalogue.folder).views()
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(StoreError, match="at byte 0"):
        Catalogue(catalogue.folder).views()
    path.write_bytes(b"\x00\xff\n")
    with pytest.raises(StoreError, match="put back a copy"):
        Catalogue(catalogue.folder).views()


def test_full_disk_adds_nothing(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.register(one("1h"))
    before = (catalogue.folder / FILE).read_bytes()
    real = os.pwrite
    calls = []

    def pwrite(descriptor: int, content: bytes, at: int) -> int:
        calls.append(at)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, bytes(content)[:40], at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StoreError, match="nothing was added"):
        catalogue.register(one("7d"))
    assert (catalogue.folder / FILE).read_bytes() == before
    monkeypatch.undo()
    assert catalogue.view("card").version == small("1h").version
    catalogue.register(one("7d"))
    assert Catalogue(catalogue.folder).view("card").version == small("7d").version


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="cannot be written"):
        Catalogue(tmp_path / "file").register(FEATURES)


def test_threads_share_a_catalogue(catalogue: Catalogue) -> None:
    def work(name: str) -> None:
        for number in range(8):
            view = View(name=f"{name}{number}", entity=CARD, source=PAYMENTS, aggregations=EVERYTHING.aggregations)
            catalogue.register_view(view)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Catalogue(catalogue.folder).views()) == 24


def writer(folder: Path, name: str, first: int, last: int) -> "subprocess.Popen[str]":
    code = WRITER.format(root=str(ROOT), folder=str(folder), name=name, first=first, last=last)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_at_once(tmp_path: Path) -> None:
    processes = [writer(tmp_path, name, 0, 25) for name in ("fraud", "shop")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    found = Catalogue(tmp_path)
    assert {use.model for use in found.models()} == {f"{name}/{n}" for name in ("fraud", "shop") for n in range(25)}
    assert len({item.version for item in found.versions("card")}) == 25


def test_killed_process_keeps_its_word(tmp_path: Path) -> None:
    first = 0
    for told in (1, 4, 9):
        process = writer(tmp_path, "fraud", first, first + 10_000)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        last = -1
        for _ in range(told):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = max([last, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        process.stdin.close()
        kept = [int(use.model.partition("/")[2]) for use in Catalogue(tmp_path).models()]
        assert kept == list(range(len(kept)))
        assert last in kept
        first = len(kept)


def test_latest_views_are_kept_too(catalogue: Catalogue) -> None:
    catalogue.register_view(ACCOUNT)
    catalogue.register_view(dataclasses.replace(ACCOUNT, ttl="30d"))
    assert catalogue.view("account").view.longest == 30 * 86_400_000_000
    assert catalogue.diff("account", 1, 2).changed == ACCOUNT.feature_names

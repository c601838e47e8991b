"""Objects in a bucket: what `vitok.engines.s3` promises, asked of a real server from a wheel."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.registry.servers import ACCESS, SECRET, S3Server, s3

from vitok.engines.s3 import Bucket, bucket_address
from vitok.errors import InvalidInput, NotFound, StoreError


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        with s3() as server:
            yield server


@pytest.mark.parametrize("versions", [True, False])
def test_objects_come_and_go(server: S3Server, versions: bool, tmp_path: Path) -> None:
    bucket = Bucket(server.fresh(versions=versions))
    bucket.check()
    first = bucket.put("a/one", b"first")
    second = bucket.put("a/one", b"second")
    bucket.put("a/two", b"")
    bucket.put("b", b"x")
    assert (first is None, second is None) == (not versions, not versions)
    assert bucket.get("a/one") == b"second"
    assert [(item.name, item.size) for item in bucket.objects("a/")] == [("a/one", 6), ("a/two", 0)]
    if versions:
        assert bucket.get("a/one", first) == b"first"
        assert bucket.versions("a/one") == [second, first]
    bucket.remove(["a/one", "a/two", "never"])
    assert [item.name for item in bucket.objects()] == ["b"]
    assert bucket.versions("a/one") == []
    with pytest.raises(NotFound):
        bucket.get("a/one")
    (tmp_path / "file").write_bytes(b"y" * 100_000)
    bucket.put_file("long", tmp_path / "file", notes={"sha256": "12"})
    assert (bucket.notes("long"), bucket.notes("none")) == ({"sha256": "12"}, None)
    bucket.get_file("long", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"y" * 100_000


def test_who_is_not_let_in(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address = server.fresh()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError):
        Bucket(address).put("a", b"x")


def test_addresses() -> None:
    assert bucket_address("s3://models").path == ""
    for url in ("s3://", "s3:///prefix", "s3://ann:word@models", "models", "s3://models?versions=2"):
        with pytest.raises(InvalidInput):
            bucket_address(url)

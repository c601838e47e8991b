"""The feature service with a real reader: times that cannot be, and a store that dies while it is asked."""

from collections.abc import Iterator

import httpx
import polars as pl
import pytest
from tests.engines.servers import valkey

from vitok.clock import DAY, HOUR, EventClock
from vitok.engines import open_rows
from vitok.features import Entity, FeatureReader, FeatureSet, Latest, Source, materialise
from vitok.serving import running
from vitok.serving.feature_service import FeatureEndpoint, feature_application

NOW = 20_000 * DAY
ACCOUNT = Latest(
    name="account", entity=Entity("customer", "customer_id"), source=Source("accounts"), columns=("limit",), ttl="30d"
)
SET = FeatureSet(views=(ACCOUNT,))


@pytest.fixture
def rows() -> pl.DataFrame:
    at = pl.Series([NOW - HOUR, NOW - HOUR]).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({"event_id": ["1", "2"], "event_time": at, "customer_id": ["7", "8"], "limit": [70.0, 80.0]})


@pytest.fixture
def client(rows: pl.DataFrame) -> Iterator[httpx.Client]:
    store = open_rows("memory://service-failures")
    materialise(SET, {"accounts": rows}, store, until=NOW)
    endpoint = FeatureEndpoint("account", FeatureReader(SET, store, clock=EventClock(NOW)))
    with running(feature_application([endpoint]), [endpoint]) as service, httpx.Client(base_url=service.url) as http:
        yield http


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "3000-01-01T00:00:00+14:00"])
def test_a_moment_of_the_far_future_finds_nothing_that_is_fresh(client: httpx.Client, time: str) -> None:
    reply = client.post("/v1/features/account/vectors", json={"keys": {"customer_id": "7"}, "time": time})
    assert (reply.status_code, reply.json()["values"], reply.json()["status"]) == (200, [[None]], ["stale"])


@pytest.mark.parametrize("time", ["10000-01-01T00:00:00Z", "99999999999999999999", 1e30, "0000-01-01T00:00:00Z"])
def test_a_moment_that_cannot_be_is_refused(client: httpx.Client, time: object) -> None:
    reply = client.post("/v1/features/account/vectors", json={"keys": {"customer_id": "7"}, "time": time})
    assert reply.status_code == 422
    assert "time" in reply.json()["detail"]


def test_a_redis_that_is_killed_between_requests(rows: pl.DataFrame) -> None:
    with valkey() as server:
        store = open_rows(server.url)
        materialise(SET, {"accounts": rows}, store, until=NOW)
        reader = FeatureReader(SET, store, clock=EventClock(NOW), cooldown="30s")
        endpoint = FeatureEndpoint("account", reader)
        with (
            running(feature_application([endpoint]), [endpoint]) as service,
            httpx.Client(base_url=service.url) as http,
        ):
            body = {"keys": {"customer_id": ["7", "8", "9"]}, "details": True}
            before = http.post("/v1/features/account/vectors", json=body).json()
            assert before["values"] == [[70.0], [80.0], [None]]
            server.process.kill()
            server.process.wait()
            for _ in range(5):
                reply = http.post("/v1/features/account/vectors", json=body)
                assert reply.status_code == 200
                assert reply.json()["values"] == before["values"]
                assert reply.json()["views"]["account"]["source"][:2] == ["cache", "cache"]
        reader.close()

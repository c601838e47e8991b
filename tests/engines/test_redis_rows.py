"""What only Redis has: passwords, TLS, servers that die, halt, refuse or move their slots."""

import contextlib
import datetime as dt
import ipaddress
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.engines.servers import Server, free_ports, until, valkey, valkey_cluster

from vitok.engines import HEADER, RedisRows, Row, pack_version
from vitok.engines.redis_servers import slot_of
from vitok.errors import StoreError

redis = pytest.importorskip("redis")


def soon(action: Callable[[], object], seconds: float, match: str) -> None:
    """Expects a StoreError within so many seconds."""
    began = time.monotonic()
    with pytest.raises(StoreError, match=match):
        action()
    assert time.monotonic() - began < seconds


def values(store: RedisRows, *keys: bytes) -> list[bytes | None]:
    return [row and row[HEADER:] for row in store.read(keys)]


def test_a_read_is_one_round_trip(redis_server: Server) -> None:
    store = RedisRows(redis_server.url)
    with redis.Redis(port=redis_server.ports[0]) as client:
        client.flushall()
        store.write([Row(b"view%d/%d" % (view, i), (1, 1), b"v") for view in range(5) for i in range(100)])
        before = client.info("commandstats")["cmdstat_mget"]["calls"] if store.read([b"x"]) else 0
        assert all(store.read([b"view%d/%d" % (view, i) for view in range(5) for i in range(100)]))
        assert client.info("commandstats")["cmdstat_mget"]["calls"] == before + 1
    store.close()
    assert values(store, b"view0/0") == [b"v"]


def test_a_server_that_nobody_runs_is_an_error_at_once() -> None:
    (port,) = free_ports(1)
    for scheme in ("redis", "redis-cluster"):
        store = RedisRows(f"{scheme}://127.0.0.1:{port}?timeout_ms=300")
        for action in (lambda s=store: s.read([b"k"]), lambda s=store: s.write([Row(b"k", (1, 1), b"")])):
            soon(action, 2, f"127.0.0.1:{port} cannot be reached .*see that it runs")
        soon(lambda s=store: s.erase([b"k"]), 2, "cannot be reached")


def test_a_server_that_is_killed_and_comes_back() -> None:
    (port,) = free_ports(1)
    with valkey(port=port) as server:
        store = RedisRows(server.url)
        store.write([Row(b"k", (1, 1), b"v")])
        server.process.kill()
        server.process.wait()
        soon(lambda: store.read([b"k"]), 2, "cannot be reached")
        soon(lambda: store.write([Row(b"k", (1, 1), b"")]), 2, "cannot be reached")
    with valkey(port=port):
        # A new server does not know the script.
        assert store.read([b"k"]) == [None]
        assert store.write([Row(b"k", (2, 2), b"w")]) == 1
        assert values(store, b"k") == [b"w"]


def test_a_server_that_halts_is_an_error_in_time() -> None:
    with valkey() as server:
        store = RedisRows(f"{server.url}?timeout_ms=100")
        store.write([Row(b"k", (1, 1), b"v")])
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            soon(lambda: store.read([b"k"]), 2, "did not answer within 100 ms")
            soon(lambda: store.write([Row(b"k", (2, 2), b"")]), 2, "did not answer within 100 ms")
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        # The late answers of before are not taken for those of now.
        until(lambda: store.read([b"other", b"k"])[1])
        assert store.read([b"other"]) == [None]


def test_a_server_that_dies_in_the_middle_of_reads() -> None:
    with valkey() as server:
        store = RedisRows(f"{server.url}?timeout_ms=500")
        keys = [b"%d" % i for i in range(2000)]
        store.write([Row(key, (1, 1), bytes(200)) for key in keys])
        wrong: list[object] = []
        errors: list[StoreError] = []

        def read() -> None:
            while True:
                try:
                    rows = store.read(keys)
                except StoreError as error:
                    errors.append(error)
                    return
                if any(row != pack_version(1, 1) + bytes(200) for row in rows):
                    wrong.append(rows)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: store.read(keys[:1]))
        server.process.kill()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert not wrong
        assert len(errors) == 4


def test_a_stranger_in_the_connection_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        answers = threading.Thread(target=_greet, args=(stranger,), daemon=True)
        answers.start()
        port = stranger.getsockname()[1]
        soon(lambda: RedisRows(f"redis://127.0.0.1:{port}?timeout_ms=300").read([b"k"]), 3, "not speak the protocol")
        stranger.shutdown(socket.SHUT_RDWR)
    answers.join(5)


def _greet(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(10_000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.0\r\n")


def test_users_and_passwords() -> None:
    with valkey("--requirepass", "a/b c@d") as server:
        port = server.ports[0]
        for login in ("", ":wrong@", "me:wrong@"):
            store = RedisRows(f"redis://{login}127.0.0.1:{port}")
            with pytest.raises(StoreError, match="wants another user or password") as caught:
                store.read([b"k"])
            assert "wrong" not in str(caught.value)
        store = RedisRows(f"redis://:a%2Fb%20c%40d@127.0.0.1:{port}/3")
        assert store.write([Row(b"k", (1, 1), b"v")]) == 1
        assert values(store, b"k") == [b"v"]
        with redis.Redis(port=port, password="a/b c@d", db=3) as client:
            assert client.get(b"k") == pack_version(1, 1) + b"v"
            client.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+mget")
        reader = RedisRows(f"redis://reader:word@127.0.0.1:{port}/0")
        soon(lambda: reader.write([Row(b"k", (1, 1), b"")]), 2, "forbids it .*allow the user")


def test_a_server_that_refuses_says_why() -> None:
    with valkey("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = RedisRows(server.url)
        with pytest.raises(StoreError, match="no memory left: raise its maxmemory"):
            store.write([Row(b"%d" % i, (1, 1), bytes(100_000)) for i in range(100)])
        port = server.ports[0]
        with redis.Redis(port=port) as client:
            client.flushall()
            client.rpush("list", "x")
            client.set("foreign", "7")
        with pytest.raises(StoreError, match="WRONGTYPE"):
            store.write([Row(b"list", (1, 1), b"")])
        with redis.Redis(port=port) as client:
            client.replicaof("127.0.0.1", free_ports(1)[0])
        soon(lambda: store.write([Row(b"k", (1, 1), b"")]), 2, "is a replica and takes no writes")
        cluster = RedisRows(server.url.replace("redis:", "redis-cluster:"))
        soon(lambda: cluster.read([b"k"]), 2, "is not part of a cluster: use redis://")


def test_the_script_is_sent_again_when_the_server_forgot_it(redis_server: Server) -> None:
    store = RedisRows(redis_server.url)
    with redis.Redis(port=redis_server.ports[0]) as client:
        client.flushall()
        for version in range(1, 4):
            client.script_flush()
            assert store.write([Row(b"%d" % i, (version, 0), b"%d" % version) for i in range(1000)]) == 1000
    assert set(values(store, *(b"%d" % i for i in range(1000)))) == {b"3"}


def test_an_idle_connection_that_was_closed_is_opened_again(redis_server: Server) -> None:
    store = RedisRows(redis_server.url)
    store.write([Row(b"idle", (1, 1), b"v")])
    with redis.Redis(port=redis_server.ports[0]) as client:
        for _ in range(3):
            client.client_kill_filter(_type="normal", skipme=True)
            assert values(store, b"idle") == [b"v"]


def certificate(folder: Path) -> None:
    """Makes a key and a certificate for 127.0.0.1, signed by itself."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vitok test")])
    now = dt.datetime.now(dt.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = (
        made.serial_number(1).not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    )
    made = made.add_extension(here, critical=False)
    signed = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )
    plain = serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )


@contextlib.contextmanager
def behind_tls(port: int, folder: Path) -> Iterator[int]:
    """Gives a port that speaks TLS and hands all to `port`: the server of the wheel is built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            while True:
                client, _ = front.accept()
                try:
                    wrapped = stack.enter_context(context.wrap_socket(client, server_side=True))
                except (OSError, ssl.SSLError):
                    client.close()
                    continue
                back = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for pair in ((wrapped, back), (back, wrapped)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as front:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield front.getsockname()[1]
        front.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_tls_checks_who_answers(redis_server: Server, tmp_path: Path) -> None:
    certificate(tmp_path)
    with behind_tls(redis_server.ports[0], tmp_path) as port:
        store = RedisRows(f"rediss://127.0.0.1:{port}/0?ca={tmp_path}/cert.pem")
        store.erase([b"tls"])
        assert store.write([Row(b"tls", (1, 1), bytes(100_000))]) == 1
        assert values(store, b"tls") == [bytes(100_000)]
        stranger = RedisRows(f"rediss://127.0.0.1:{port}/0")
        soon(lambda: stranger.read([b"tls"]), 3, "cannot be reached .*certificate")
        store.close()
    plain = RedisRows(f"rediss://127.0.0.1:{redis_server.ports[0]}/0?timeout_ms=300")
    soon(lambda: plain.read([b"tls"]), 3, "Redis at 127.0.0.1")


def test_slots_are_those_of_the_server(tmp_path: Path) -> None:
    bus = str(free_ports(1)[0])
    with valkey("--cluster-enabled", "yes", "--cluster-port", bus, "--dir", str(tmp_path)) as server:
        order = random.Random(0)
        keys = [b"123456789", b"{a}b", b"{}x", b"{", b"}{a}", b"a{b}{c}", b"{{a}}", b"a{bc", b"\xff{\0}"]
        keys += [order.randbytes(order.randrange(1, 40)) for _ in range(200)]
        with redis.Redis(port=server.ports[0]) as client:
            # Source: the server's own CLUSTER KEYSLOT.
            assert [slot_of(key) for key in keys] == [client.execute_command("CLUSTER", "KEYSLOT", key) for key in keys]
        store = RedisRows(server.url.replace("redis:", "redis-cluster:").removesuffix("/0"))
        soon(lambda: store.read([b"k"]), 2, "no server for slot .*CLUSTER INFO")
        alone = RedisRows(server.url)
        soon(lambda: alone.read([b"k"]), 2, "its cluster is down|use redis-cluster")


@pytest.mark.slow
def test_a_cluster_asks_each_server_once(redis_cluster: Server) -> None:
    store = RedisRows(redis_cluster.url)
    keys = [b"{%d}%s" % (i, view) for i in range(50) for view in (b"a", b"b", b"c")]
    store.write([Row(key, (1, 1), key) for key in keys])
    assert values(store, *keys) == keys
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(redis.Redis(port=port)) for port in redis_cluster.ports]
        held = [client.dbsize() for client in clients]
        assert min(held) > 0
        before = sum(client.info("commandstats")["cmdstat_mget"]["calls"] for client in clients)
        store.read(keys)
        after = sum(client.info("commandstats")["cmdstat_mget"]["calls"] for client in clients)
        assert after - before == len({slot_of(key) for key in keys}) == 50
    alone = RedisRows(f"redis://127.0.0.1:{redis_cluster.ports[0]}")
    soon(lambda: [alone.read([key]) for key in keys], 2, "part of a cluster: use redis-cluster://")


@pytest.mark.slow
def test_a_cluster_whose_slots_move_and_whose_server_dies() -> None:
    with valkey_cluster() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(redis.Redis(port=port)) for port in server.ports]
        names = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
        tag = next(b"{%d}" % i for i in range(1000) if slot_of(b"%d" % i) < 5000)
        slot = slot_of(tag)
        keys = [tag + b"%d" % i for i in range(20)]
        others = [b"{%d}o" % i for i in range(200)]
        store = RedisRows(f"{server.url}?timeout_ms=1000")
        store.write([Row(key, (1, 1), b"1") for key in keys + others])

        # Half of the slot's keys have moved from server 0 to server 1; the slot is under way.
        clients[1].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        clients[0].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        for key in keys[:10]:
            clients[0].execute_command("MIGRATE", "127.0.0.1", server.ports[1], key, 0, 5000)
        assert values(store, *keys, tag + b"nothing") == [b"1"] * 20 + [None]
        assert store.write([Row(key, (2, 2), b"2") for key in keys]) == 20
        assert store.write([Row(tag + b"new", (1, 1), b"n")]) == 1
        assert values(store, *keys, tag + b"new", others[0]) == [b"2"] * 20 + [b"n", b"1"]
        assert store.erase([keys[0], keys[19]]) == 2

        # The rest moves; the slot has a new owner, of which the store hears by MOVED.
        for key in clients[0].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            clients[0].execute_command("MIGRATE", "127.0.0.1", server.ports[1], key, 0, 5000)
        for client in clients[1::-1]:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[1])
        assert values(store, *keys[1:19]) == [b"2"] * 18
        assert store.write([Row(key, (3, 3), b"3") for key in keys]) == 20
        assert values(store, *keys, *others[:50]) == [b"3"] * 20 + [b"1"] * 50
        assert values(RedisRows(server.url), *keys) == [b"3"] * 20

        server.processes[2].kill()
        server.processes[2].wait()
        soon(lambda: store.read(others), 5, r"cannot be reached|cluster is down|did not answer")
        soon(lambda: store.read(others), 5, r"cannot be reached|cluster is down|did not answer")


def test_two_threads_use_two_connections(redis_server: Server) -> None:
    store = RedisRows(redis_server.url)
    store.write([Row(b"t%d" % i, (1, 1), b"%d" % i) for i in range(8)])
    wrong: list[object] = []

    def read(i: int) -> None:
        for _ in range(200):
            if values(store, b"t%d" % i) != [b"%d" % i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


_FORKED = """
import os, sys
from vitok.engines import RedisRows, Row
store = RedisRows(sys.argv[1])
store.write([Row(b"fork", (1, 1), b"v")])
child = os.fork()
ok = all(store.read([b"fork"])[0] is not None for _ in range(200))
if child == 0:
    os._exit(0 if ok else 1)
assert ok and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_process_makes_its_own_connections(redis_server: Server) -> None:
    subprocess.run([sys.executable, "-c", _FORKED, redis_server.url], check=True, timeout=60)

"""Address lists: against the ipaddress module, mapped addresses, and what a caller may not make us believe."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.guard import AddressList, Networks, network_of

networks = st.lists(
    st.one_of(
        st.builds(
            lambda n, p: ipaddress.ip_network((n, p), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
        ),
        st.builds(
            lambda n, p: ipaddress.ip_network((n << 64, p), strict=False),
            st.integers(0, 2**64 - 1),
            st.integers(0, 128),
        ),
    ),
    max_size=8,
)


@given(networks, st.lists(st.integers(0, 2**32 - 1), max_size=10), st.data())
def test_as_the_standard_library(found: list[ipaddress.IPv4Network], numbers: list[int], data: st.DataObject) -> None:
    compiled = Networks([str(network) for network in found])
    addresses = [str(ipaddress.IPv4Address(number)) for number in numbers]
    addresses += [str(ipaddress.IPv6Address(number << 96)) for number in numbers]
    # Ends of the networks, and their neighbours.
    for network in found:
        for edge in (int(network.network_address), int(network.broadcast_address)):
            for near in (edge - 1, edge, edge + 1):
                if 0 <= near < 2**network.max_prefixlen:
                    kind = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
                    addresses.append(str(kind(near)))
    for text in addresses:
        address = ipaddress.ip_address(text)
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is None:
            assert (text in compiled) == any(address in network for network in found)


def test_mapped_addresses_are_what_they_mean() -> None:
    edge = AddressList(deny=["192.0.2.0/24", "::ffff:198.51.100.0/120"])
    for peer in ("192.0.2.1", "::ffff:192.0.2.1", "::FFFF:c000:0201", "198.51.100.7", "::ffff:198.51.100.7"):
        assert not edge.check(peer).admitted, peer
    assert edge.check("192.0.3.1").admitted
    assert edge.check("::ffff:192.0.3.1").address == "192.0.3.1"
    assert edge.check("fe80::1%eth0").admitted


def test_what_is_no_address_is_refused() -> None:
    edge = AddressList()
    for peer in (
        "",
        "unknown",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "1.2.3.4 ",
        "::1::",
        "host",
        "\x00",
        "::ffff:1.2.3.400",
    ):
        assert not edge.check(peer).admitted, peer
    assert edge.check("1.2.3.4").admitted
    assert edge.check("::1").admitted


TRUSTED = ["10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("peer", "header", "caller"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "1.1.1.1", "203.0.113.9"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1,203.0.113.9 ,10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::1", "[2001:dead::9]:443", "2001:dead::9"),
        ("::ffff:10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, unknown", ""),
        ("10.0.0.1", "1.1.1.1, ", ""),
        ("10.0.0.1", ", ".join(["10.0.0.2"] * 100), ""),
        ("10.0.0.1", "x" * 10_000, ""),
        ("10.0.0.1", ",".join(["1.1.1.1"] * 100) + ",203.0.113.9", "203.0.113.9"),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, header: str, caller: str) -> None:
    edge = AddressList(trusted=TRUSTED)
    for _ in range(2):
        found = edge.check(peer, header)
        assert found.address == caller
        assert found.admitted == bool(caller)


def test_the_memory_of_addresses_is_bounded() -> None:
    edge = AddressList(trusted=["10.0.0.0/8"])
    for i in range(10_000):
        edge.check("10.0.0.1", f"1.2.{i >> 8}.{i & 255}")
    assert len(edge._seen) <= 4096
    edge.check("10.0.0.1", "1.1.1.1," * 1000 + "2.2.2.2")
    assert all(len(header) <= 64 for _, header in edge._seen)


@pytest.mark.parametrize("bad", ["10.0.0.1/8", "host", "10.0.0.0/33", "", "1.2.3.4-1.2.3.9"])
def test_what_is_no_network(bad: str) -> None:
    with pytest.raises(InvalidInput, match="network"):
        Networks([bad])


def test_networks_of_addresses() -> None:
    assert network_of("::ffff:203.0.113.77") == "203.0.113.0/24"
    assert network_of("2001:db8:aa:bbcc::1", v6=48) == "2001:db8:aa::/48"
    with pytest.raises(InvalidInput):
        network_of("nowhere")
    with pytest.raises(InvalidInput):
        Networks("10.0.0.0/8")

"""Where records may go: never to an address of a private network, unless that was asked for."""

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from adapter import ingestion, wire
from adapter.addresses import is_public
from adapter.config import Settings
from adapter.errors import ConfigError
from adapter.ingestion import Client, Outcome
from schemas.mixpanel import ENGAGE, IMPORT
from tests.endpoint import Endpoint

PUBLIC = ["8.8.8.8", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = {
    "loopback": "127.0.0.1",
    "loopback, elsewhere": "127.255.0.9",
    "loopback of IPv6": "::1",
    "this host": "0.0.0.0",  # noqa: S104 not a bind
    "this host of IPv6": "::",
    "10/8": "10.0.0.1",
    "172.16/12": "172.31.255.1",
    "192.168/16": "192.168.1.1",
    "metadata of a cloud": "169.254.169.254",
    "metadata of another cloud": "192.0.0.192",
    "a provider's own": "100.64.0.1",
    "for benchmarks": "198.18.0.1",
    "to many": "224.0.0.1",
    "to all": "255.255.255.255",
    "reserved": "240.0.0.1",
    "IPv4 in IPv6": "::ffff:10.0.0.1",
    "IPv4 in IPv6, loopback": "::ffff:127.0.0.1",
    "IPv4 in IPv6, as it was once": "::7f00:1",
    "NAT64": "64:ff9b::a00:1",
    "NAT64 of one's own": "64:ff9b:1::a00:1",
    "6to4": "2002:a00:1::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "link-local": "fe80::1",
    "unique local": "fd00::1",
    "site-local": "fec0::1",
    "multicast": "ff02::1",
    "documentation": "2001:db8::1",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("which", PRIVATE)
def test_an_address_of_a_private_network_is_not(which: str) -> None:
    assert not is_public(PRIVATE[which])


def environ(url: str, **variables: str) -> dict[str, str]:
    return {"INGESTION_URL": url, "MIXPANEL_TOKEN": "tok-3f9a", "WEBHOOK_TOKEN": "w", **variables}


OFF_LOOPBACK = {"HOST": "0.0.0.0"}  # noqa: S104 never bound


@pytest.mark.parametrize(
    ("url", "variables", "starts"),
    [
        ("http://10.0.0.7:9000/mp", {}, False),
        ("http://[fd00::1]", {}, False),
        ("http://169.254.169.254", OFF_LOOPBACK, False),
        ("http://10.0.0.7:9000/mp", {"INGESTION_PRIVATE": "yes"}, True),
        ("http://127.0.0.1:9000", {}, True),
        ("http://127.0.0.1:9000", OFF_LOOPBACK, False),
        ("http://127.0.0.1:9000", {**OFF_LOOPBACK, "INGESTION_PRIVATE": "yes"}, True),
        ("https://8.8.8.8", OFF_LOOPBACK, True),
        ("https://api.mixpanel.com", OFF_LOOPBACK, True),
        ("sandbox", OFF_LOOPBACK, True),
    ],
)
def test_a_private_address_is_named_at_the_start(url: str, variables: dict[str, str], starts: bool) -> None:
    if starts:
        Settings.from_environment(environ(url, **variables))
    else:
        with pytest.raises(ConfigError, match="INGESTION_URL: .*INGESTION_PRIVATE=yes"):
            Settings.from_environment(environ(url, **variables))


@pytest.mark.parametrize("url", ["ftp://api.mixpanel.com", "file:///etc/passwd", "gopher://a", "//a", "http://u:p@a"])
def test_nothing_but_http_is_spoken(url: str) -> None:
    with pytest.raises(ConfigError, match="INGESTION_URL"):
        Settings.from_environment(environ(url))


def client(url: str, **settings: Any) -> Client:
    how = {"host": "0.0.0.0", **settings}  # noqa: S104 never bound
    return Client(Settings(ingestion_url=url, mixpanel_token="tok-3f9a", **how), url)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the name of the endpoint leads to, one look after another; the last for good."""
    addresses: list[str] = []
    look = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        if host == "api.example":
            host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return look(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return addresses


@pytest.mark.parametrize("to", [IMPORT, ENGAGE])
def test_a_name_that_leads_into_a_private_network_is_sent_nothing(
    endpoint: Endpoint, answering: list[str], to: str
) -> None:
    answering.append("127.0.0.1")
    with closing(client(endpoint.url.replace("127.0.0.1", "api.example"))) as found:
        verdict = found.post(found.request(to, [b"{}"]), 1)
    assert (verdict.outcome, verdict.unknown, verdict.wait_s) == (Outcome.LATER, False, ingestion.FAULT_WAIT_S)
    assert "INGESTION_PRIVATE=yes" in (verdict.fault or "")
    assert endpoint.got == []


def test_it_is_sent_to_where_that_was_asked_for(endpoint: Endpoint, answering: list[str]) -> None:
    answering.append("127.0.0.1")
    with closing(client(endpoint.url.replace("127.0.0.1", "api.example"), ingestion_private=True)) as found:
        assert found.post(found.request(IMPORT, [b"{}"]), 1).outcome is Outcome.DONE


def test_a_name_that_leads_elsewhere_when_it_is_looked_up_again_is_sent_nothing(
    endpoint: Endpoint, answering: list[str]
) -> None:
    """DNS rebinding: each connection is judged by the address that it was made to."""
    answering += ["127.0.0.1", "127.0.0.2"]
    url = endpoint.url.replace("127.0.0.1", "api.example")
    other = socket.create_server(("127.0.0.2", int(endpoint.url.rpartition(":")[2])))
    with other, closing(wire.Wire((), "127.0.0.1".__eq__)) as found:
        other.settimeout(10)
        found.send("POST", url, params={}, headers={}, body=b"[]")
        found.close()  # so that the next connection is a new one
        with pytest.raises(wire.NoAnswer) as error:
            found.send("POST", url, params={}, headers={}, body=b"[]")
        heard, _ = other.accept()
        with heard:
            assert heard.recv(1) == b"", "connected to, and left without a word"
    assert (len(endpoint.got), error.value.unknown, error.value.is_private) == (1, False, True)


@pytest.mark.parametrize("host", ["0x7f.1", "0177.0.0.1", "2130706433", "127.1", "localhost", "[::ffff:127.0.0.1]"])
def test_no_spelling_of_an_address_passes(endpoint: Endpoint, host: str) -> None:
    with closing(client(endpoint.url.replace("127.0.0.1", host))) as found:
        verdict = found.post(found.request(IMPORT, [b"{}"]), 1)
    assert verdict.outcome is Outcome.LATER
    assert endpoint.got == []

"""Which IP addresses belong to this machine, which to a private network, which to the world: judged by the number
that a connection was made to, however its name was written and whoever answered for it.
"""

import ipaddress

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
#: Of the protocols themselves; some clouds keep their secrets there.
_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")


def is_public(text: str) -> bool:
    """Whether an address is one of the internet at large. Raises ValueError for what is no address."""
    address = _inner(text)
    if isinstance(address, ipaddress.IPv6Address):
        return address in _UNICAST and address.is_global
    return address.is_global and not address.is_multicast and address not in _PROTOCOLS


def is_loopback(text: str) -> bool:
    """Whether an address is this machine's own. Raises ValueError for what is no address."""
    return _inner(text).is_loopback


def _inner(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address, or the older one within it that a gateway would lead to."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address

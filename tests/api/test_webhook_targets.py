import asyncio
import ipaddress

import pytest

from api.webhook_targets import TargetRefusedError, check_url, is_public, resolve
from core.errors import InvalidRequestError


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)
def test_an_address_that_is_not_public_or_hides_one_is_refused(address: str):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_a_public_address_is_allowed(address: str):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://localhost/",
        "https://LOCALHOST./",
        "https://a.localhost/",
        "http://example.com/",
        "https:///path",
        "https://user@example.com/",
        "https://example.com/#part",
        "https://exa mple.com/",
        "https://example.com:99999/",
        "file:///etc/passwd",
    ],
)
def test_a_url_that_shows_its_fault_is_refused_when_it_is_given(url: str):
    with pytest.raises(InvalidRequestError) as error:
        check_url(url, private_allowed=False)
    assert error.value.param == "url"


def test_a_name_that_leads_inside_is_refused_when_it_is_looked_up():
    # Also as a number: the resolver takes 2130706433 and 0x7f.1 for 127.0.0.1.
    for host in ("localhost", "127.0.0.1", "2130706433", "0x7f.1"):
        with pytest.raises(TargetRefusedError):
            asyncio.run(resolve(host, 443, private_allowed=False))
    assert "127.0.0.1" in asyncio.run(resolve("localhost", 80, private_allowed=True))

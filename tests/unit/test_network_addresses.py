"""Address arithmetic and the pod network's rules and configuration texts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stead.network import addresses, dnsmasq, rules
from stead.network.attachment import Attachment, NetworkConfig

UID = "0a3b2a52-5d0e-4f6c-9d3a-1f2e3d4c5b6a"
REQUEST = Attachment(machine_uid=UID, interface="default", ipv4="10.128.0.5", mac="02:00:00:00:00:01", hostname="web")


def test_ranges() -> None:
    assert addresses.gateway_of("10.128.0.0/16") == "10.128.0.1"
    assert addresses.guest_address_of("10.0.2.0/24") == "10.0.2.2"
    assert addresses.guest_address_of("fd10:0:2::/120") == "fd10:0:2::2"
    assert addresses.overlaps("10.128.3.0/24", "10.128.0.0/16")
    assert not addresses.overlaps("10.129.0.0/16", "10.128.0.0/16")
    assert not addresses.overlaps("fd10:0:2::/120", "10.128.0.0/16")


def test_addresses_are_found_in_order_and_around_once() -> None:
    assert list(addresses.free_addresses("10.0.0.0/29", {"10.0.0.3"})) == [
        "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6",
    ]  # fmt: skip
    assert list(addresses.free_addresses("10.0.0.0/29", set(), "10.0.0.5"))[:2] == ["10.0.0.6", "10.0.0.2"]
    assert addresses.next_free("10.0.0.0/30", {"10.0.0.2"}) is None


@given(st.integers(20, 30), st.integers(0, 5000))
def test_a_free_address_is_one_that_a_machine_may_have(prefix: int, step: int) -> None:
    cidr = f"10.20.0.0/{prefix}"
    free = list(addresses.free_addresses(cidr, set()))
    assert len(set(free)) == len(free) == 2 ** (32 - prefix) - 3
    assert addresses.is_within(free[step % len(free)], cidr)


@given(st.text(max_size=40))
def test_macs_are_stable_local_and_unicast(seed: str) -> None:
    mac = addresses.mac_from_seed(seed)
    assert mac == addresses.mac_from_seed(seed) == addresses.mac_from_text(mac.upper().replace(":", "-"))
    assert mac.startswith("02:")


@pytest.mark.parametrize("text", ["", "02:00:00:00:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "zz:00:00:00:00:01"])
def test_what_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="MAC"):
        addresses.mac_from_text(text)


def test_names_are_short_stable_and_tell_instances_apart() -> None:
    one, other = NetworkConfig(instance="stead"), NetworkConfig(instance="stead-2")
    assert len(one.tap(UID)) <= 15
    assert len({one.tap(UID), one.veth(UID), other.tap(UID), other.veth(UID)}) == 4
    assert one.uid_of_namespace(one.namespace(UID)) == UID
    assert one.uid_of_namespace(other.namespace(UID)) is None
    assert one.uid_of_namespace("stead-of-somebody") is None


def test_ports_restrict_and_none_forwards_all() -> None:
    everything = rules.machine_rules(REQUEST, "tap", "10.128.0.1")
    assert "dnat ip to 10.0.2.2" in everything
    assert "dport { 80" not in everything
    ports = Attachment(machine_uid=UID, interface="default", ipv4="10.128.0.5", mac="02:00:00:00:00:01",
                       ports=(("TCP", 80), ("UDP", 53), ("TCP", 22)))  # fmt: skip
    text = rules.machine_rules(ports, "tap", "10.128.0.1")
    assert "tcp dport { 22, 80 } dnat" in text
    assert "udp dport { 53 } dnat" in text


def test_nft_and_dnsmasq_take_the_texts(tmp_path: Path) -> None:
    config = NetworkConfig(run_dir=str(tmp_path))
    for text in (rules.host_rules(config), rules.machine_rules(REQUEST, "tap", config.gateway)):
        done = subprocess.run(["unshare", "-rn", "nft", "-c", "-f", "-"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for text in (
        dnsmasq.dns_configuration(config, tmp_path),
        dnsmasq.dhcp_configuration(REQUEST, "tap", 1500, config.gateway, tmp_path),
    ):
        path = tmp_path / "dnsmasq.conf"
        path.write_text(text)
        done = subprocess.run(["dnsmasq", "--test", f"--conf-file={path}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

"""What a Ray that is started here listens on: loopback alone."""

import ipaddress

import psutil
import pytest
import ray

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("local_ray")
def test_every_process_of_a_local_ray_listens_on_loopback_alone() -> None:
    assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"  # type: ignore[no-untyped-call]
    own = psutil.Process()
    found = []
    for process in [own, *own.children(recursive=True)]:
        try:
            connections = process.net_connections(kind="tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        listening = [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]
        found += [(process.name(), ip) for ip in listening]
    names = {name for name, _ in found}
    assert {"gcs_server", "raylet"} <= names
    for name, ip in found:
        address = ipaddress.ip_address(ip)
        mapped = getattr(address, "ipv4_mapped", None) or address
        assert mapped.is_loopback, f"{name} listens on {ip}"

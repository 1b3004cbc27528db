# SPDX-License-Identifier: Apache-2.0
"""What is written into a domain's XML is read back as it was."""

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._domain_xml import read_boot, read_hostdevs, read_paths, read_size, render_domain, resized
from ansible_collections.lepton.cloud.plugins.module_utils._node import Boot, Size
from ansible_collections.lepton.cloud.plugins.module_utils._numa import Seat
from tests.conftest import require

MIB = 1 << 20
SIZE = Size(2, 512 * MIB, 4, 1024 * MIB)


DIRECT = {"kernel": "/i/vmlinuz", "initrd": "/i/initrd.img", "cmdline": "console=ttyS0"}


def render(boot: Boot, direct: dict[str, str] | None = None, virtualization: str = "qemu") -> str:
    paths = {"disk_path": "/d/web-1.qcow2", "console_path": "/d/web-1.log"}
    has_disk = direct is None or boot.disk is not None
    return render_domain("web-1", SIZE, boot, virtualization=virtualization, direct_boot=direct, has_disk=has_disk, **paths)


def validated(xml: str, folder: Path) -> str:
    """Return what libvirt's own schemas have against a domain, "" for nothing."""
    require([] if shutil.which("virt-xml-validate") else ["virt-xml-validate"], "libvirt")
    require([] if shutil.which("xmllint") else ["xmllint"], "libvirt")
    (folder / "domain.xml").write_text(xml)
    done = subprocess.run(["virt-xml-validate", folder / "domain.xml", "domain"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("network", ["bridge:br0", "network:default", "none"])
@pytest.mark.parametrize("virtualization", ["qemu", "kvm", "xen"])
def test_libvirts_own_schemas_have_nothing_against_it(virtualization: str, network: str, tmp_path: Path) -> None:
    assert validated(render(Boot("guest", 1 << 30, network, ()), DIRECT, virtualization), tmp_path) == ""


def test_devices_pinning_huge_pages_and_a_seed_are_as_libvirt_has_them(tmp_path: Path) -> None:
    boot = Boot("debian", 1 << 30, "none", (), devices=("nvidia-gpu:1",), cpuset="2-3", hugepages=True)
    paths = {"disk_path": "/d/a.qcow2", "console_path": "/d/a.log", "seed_path": "/d/a.seed.iso"}
    seat = Seat(None, [2, 3], ["0000:3b:00.0", "0000:3b:00.1"])
    xml = render_domain("a", SIZE, boot, virtualization="kvm", direct_boot=None, has_disk=True, seat=seat, **paths)
    assert validated(xml, tmp_path) == ""
    assert validated(render(Boot("guest", 1 << 30, "bridge:br0", (), mac="52:54:00:4b:1f:07"), DIRECT), tmp_path) == ""
    assert read_hostdevs(xml) == ("0000:3b:00.0", "0000:3b:00.1")
    assert read_boot(xml) == boot
    pins = [(pin.get("vcpu"), pin.get("cpuset")) for pin in ET.fromstring(xml).iterfind("cputune/vcpupin")]
    assert pins == [("0", "2"), ("1", "3"), ("2", "2"), ("3", "3")]
    assert read_paths(xml)["seed"] == "/d/a.seed.iso"
    for pins in ("0-1 0-1 2-3 2-3", "0"):  # of somebody else's: they stay as they are
        adopted = xml.replace(' cpuset="2-3"', "")
        foreign = ET.fromstring(adopted)
        tune = foreign.find("cputune")
        assert tune is not None
        tune.clear()
        for number, cpus in enumerate(pins.split()):
            ET.SubElement(tune, "vcpupin", vcpu=str(number), cpuset=cpus)
        after = ET.fromstring(resized(ET.tostring(foreign, encoding="unicode"), SIZE))
        assert [pin.get("cpuset") for pin in after.iterfind("cputune/vcpupin")] == pins.split()
    more = ET.fromstring(resized(xml, Size(2, 512 * MIB, 5, 1024 * MIB)))
    assert [(pin.get("vcpu"), pin.get("cpuset")) for pin in more.iterfind("cputune/vcpupin")] == [(str(n), "23"[n % 2]) for n in range(5)]
    assert validated(ET.tostring(more, encoding="unicode"), tmp_path) == ""


def test_the_address_is_that_of_the_network_that_a_node_has() -> None:
    xml = render(Boot("guest", 1 << 30, "bridge:br0", (), mac="52:54:00:4b:1f:07"), DIRECT)
    other = "<devices><interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>"
    two = xml.replace("<devices>", other)
    boot, alone = read_boot(two), read_boot(two.replace('network="bridge:br0"', 'network="none"'))
    assert boot is not None
    assert boot.mac == "52:54:00:4b:1f:07"
    assert alone is not None
    assert alone.mac == ""


def test_a_paravirtual_guest_of_xen_has_nothing_of_qemu() -> None:
    xml = render(Boot("guest", 1 << 30, "bridge:xenbr0", ()), DIRECT, "xen")
    assert "qemu" not in xml.replace("qcow2", "")
    assert "virtio" not in xml
    assert read_paths(xml) == {"disk": "/d/web-1.qcow2", "disks": 1, "format": None, "cache": None, "console": None, "seed": None, "type": "xen"}
    assert read_size(xml) == SIZE


@pytest.mark.parametrize(
    "boot",
    [
        Boot("debian", 10 << 30, "user", ("8080:80", "10.0.0.7:2222:22"), (("cloud.lepton.service", "a<b>"), ("team", "x"))),
        Boot("a<b>&\"'", None, "bridge:br0", ()),
        Boot("x", None, "network:default", ()),
        Boot("x", None, "none", ()),
    ],
)
def test_round_trip(boot: Boot) -> None:
    xml = render(boot)
    assert read_boot(xml) == boot
    assert read_size(xml) == SIZE
    assert read_paths(xml) == {"disk": "/d/web-1.qcow2", "disks": 1, "format": "qcow2", "cache": None, "console": "/d/web-1.log", "seed": None, "type": "qemu"}


def test_resizing_touches_nothing_else() -> None:
    before = render(Boot("debian", None, "user", ("8080:80",)))
    bigger = Size(3, 768 * MIB, 8, 2048 * MIB)
    after = resized(before, bigger)
    assert read_size(after) == bigger
    assert ET.canonicalize(resized(after, SIZE)) == ET.canonicalize(before)


def test_a_kernel_image_boots_directly_and_has_no_disk_unless_asked() -> None:
    assert read_paths(render(Boot("guest", None, "user", ()), DIRECT))["disk"] is None
    assert read_paths(render(Boot("guest", 1 << 30, "user", ()), DIRECT))["disk"] == "/d/web-1.qcow2"


def test_a_domain_of_somebody_else_has_no_mark() -> None:
    assert read_boot("<domain><name>x</name></domain>") is None


def test_ports_are_forwarded_where_they_are_said_to_be() -> None:
    xml = render(Boot("x", None, "user", ("8080:80", "10.0.0.7:2222:22")))
    assert "user,id=lepton0,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:10.0.0.7:2222-:22" in xml

# SPDX-License-Identifier: Apache-2.0
"""Nodes whose memory is of the host's huge pages, on pages that this machine reserves for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._numa import read_cells
from tests.collection.test_virtual_node import Host
from tests.conftest import require

from lepton_ai.sandbox.hypervisor import start_hypervisor, stop_hypervisor
from lepton_ai.sandbox.stand import link_guest_image

MIB = 1 << 20
RESERVED = Path("/proc/sys/vm/nr_hugepages")
PAGES, SIZE = 80, 2 * MIB


def test_what_libvirt_says_of_pages_is_read() -> None:
    pages = "<pages unit='KiB' size='4'>2169398</pages><pages unit='KiB' size='2048'>96</pages><pages unit='KiB' size='1048576'>2</pages>"
    cells = f"<cell id='0'>{pages}</cell><cell id='1'><pages size='64'>9</pages><pages size='2048'>4</pages></cell>"
    mixed = (
        "<cell id='0'><pages size='4'>9</pages><pages size='2048'>4</pages></cell><cell id='1'><pages size='4'>9</pages><pages size='1048576'>1</pages></cell>"
    )
    one_kind = read_cells(f"<capabilities><host><topology><cells>{mixed}</cells></topology></host></capabilities>")
    assert [(cell.reserved, cell.huge) for cell in one_kind] == [(8 * MIB, 8 * MIB), (1024 * MIB, 0)]
    found = read_cells(f"<capabilities><host><topology><cells>{cells}</cells></topology></host></capabilities>")
    assert [(cell.reserved, cell.huge) for cell in found] == [(2240 * MIB, 192 * MIB), (8 * MIB, 8 * MIB)]  # those that QEMU takes by default


@pytest.fixture
def reserving() -> Iterator[Host]:
    """A hypervisor on a machine with huge pages, as its kernel really has them."""
    require([] if os.geteuid() == 0 and os.access(RESERVED, os.W_OK) else ["root, who reserves huge pages"], "libvirt")
    before, mounted = RESERVED.read_text(), Path("/dev/hugepages").is_mount()
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    try:
        RESERVED.with_name("compact_memory").write_text("1")  # of memory in pieces no huge page is made
        RESERVED.write_text(str(PAGES))
        require([] if int(RESERVED.read_text()) == PAGES else ["room for huge pages"], "libvirt")
        if not mounted:
            Path("/dev/hugepages").mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "hugetlbfs", "hugetlbfs", "/dev/hugepages"], check=True)
        hypervisor = start_hypervisor(folder / "h")
        link_guest_image(folder / "h")
        yield Host(hypervisor)
        stop_hypervisor(folder / "h")
    finally:
        if not mounted:
            subprocess.run(["umount", "/dev/hugepages"], check=False)
        RESERVED.write_text(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.libvirt
@pytest.mark.slow
def test_huge_pages_are_given_once_and_to_nobody_else(reserving: Host) -> None:
    host = reserving
    told = host.module("host_info")
    assert told["huge_pages"] == {"memory": PAGES * SIZE, "memory_used": 0, "memory_free": PAGES * SIZE}
    assert told["capacity"]["memory"] <= told["host"]["memory"] - PAGES * SIZE
    wish: dict[str, Any] = {"state": "running", "image": "guest", "vcpus": 1, "memory": "96MiB", "hugepages": True, "virtualization": "emulation"}
    assert host.node("huge-1", **wish)["changed"]
    free = [int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free")]
    assert free == [PAGES - 48]  # the kernel's own word
    assert not host.node("huge-1", **wish)["changed"]
    after = host.module("host_info")
    assert after["huge_pages"]["memory_free"] == PAGES * SIZE - 96 * MIB
    assert after["capacity"]["memory_used"] == told["capacity"]["memory_used"]
    assert after["capacity"]["vcpus_used"] == told["capacity"]["vcpus_used"] + 1
    assert "it must be its memory" in host.node("huge-1", max_memory="160MiB")["msg"]
    refused = host.node("huge-2", **wish)
    assert "huge-2 with 96MiB does not fit on this host: 64MiB of 160MiB are free" in refused["msg"]
    assert "huge-2" not in host.virsh("list", "--all", "--name")
    # What it gives back it still has until it starts again, and then not.
    assert host.node("huge-1", memory="64MiB")["changed"]
    assert host.module("host_info")["huge_pages"]["memory_free"] == PAGES * SIZE - 96 * MIB
    assert host.node("huge-1", memory="64MiB", state="restarted", wait_seconds=120)["changed"]
    assert host.module("host_info")["huge_pages"]["memory_free"] == PAGES * SIZE - 64 * MIB
    free = [int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free")]
    assert free == [PAGES - 32]
    host.node("huge-1", state="absent")
    assert host.module("host_info")["huge_pages"]["memory_free"] == PAGES * SIZE

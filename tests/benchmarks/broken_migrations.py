# SPDX-License-Identifier: Apache-2.0
"""How often a live migration breaks a guest that writes memory without pause, and whether that is said: libvirt calls each of these a success.

    uv run python tests/benchmarks/broken_migrations.py [--rounds N] [--pause]

Two libvirt daemons in two network namespaces are the hosts, as in tests/collection/test_migration.py, and software emulation carries the guests. After each
migration the guest is asked over its network for longer than the module watches it. `--pause` migrates with the guest held meanwhile.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.machines import Machine, Two

SIZE = {"vcpus": 1, "memory": "128MiB", "disk": "32MiB", "virtualization": "emulation"}
WRITERS, MEBIBYTES = 2, 40
AFTER_SECONDS = 10


def write_without_pause(host: Machine, stop: threading.Event) -> None:
    while not stop.is_set():
        host.asks(f"fill?{MEBIBYTES}", timeout=5)


def boot_of(host: Machine) -> str:
    """Return the boot id of the guest on a host, "" where it does not answer."""
    said = host.asks("status", timeout=10)
    return str(json.loads(said)["boot_id"]) if said else ""


def migrated(two: Two, *, live: bool) -> str:
    """Migrate a guest that writes, and return what became of it and what was said."""
    from tests.conftest import eventually

    two.first.module("virtual_node", name="mig-1", state="running", image="guest", forward_ports=["8090:80"], **SIZE)
    before = eventually(lambda: boot_of(two.first), 150)
    stop = threading.Event()
    writers = [threading.Thread(target=write_without_pause, args=(two.first, stop)) for _number in range(WRITERS)]
    for writer in writers:
        writer.start()
    time.sleep(2)  # until they are at it; nothing tells when
    there = {"target_uri": "qemu+tcp://kvm2/system", "target_disk_dir": two.second.options["disk_dir"], "live": live}
    answer = two.first.module("virtual_node_migration", name="mig-1", **there)
    stop.set()
    for writer in writers:
        writer.join()
    deadline, whole = time.monotonic() + AFTER_SECONDS, True
    while whole and time.monotonic() < deadline:
        whole = boot_of(two.second) == before
    for host in (two.first, two.second):
        host.module("virtual_node", name="mig-1", state="absent")
    for kept in two.folder.glob("kvm?/disks/mig-1.*"):
        kept.unlink()
    if answer["failed"]:
        print(answer["msg"], flush=True)
    return f"{'whole' if whole else 'broken'}, and said to be {'broken' if answer['failed'] else 'whole'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pause", action="store_true")
    args = parser.parse_args()
    # Here, since tests/warm.py starts processes that read this file, and Ansible must come before what is of a collection.
    from tests.machines import two_machines

    with two_machines() as two:
        found = Counter(migrated(two, live=not args.pause) for _round in range(args.rounds))
    for what, count in found.most_common():
        print(f"{count} of {args.rounds}: {what}")


if __name__ == "__main__":
    main()

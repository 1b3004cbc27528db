# SPDX-License-Identifier: Apache-2.0
"""What a host with 1, 10, 100 and 1,000 nodes costs to look at and to change: time, calls of libvirt and memory.

    uv run python tests/benchmarks/growth.py [--json] [--nodes N …] [--real N …]

The nodes are of libvirt's test driver, which is part of the client library: what is measured is ours and the library's, and no guest's. With
`--real` they are guests of QEMU beside, each with a firmware that finds nothing to boot, of a libvirtd that the benchmark starts and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lepton_ai.paths import collections_path
from lepton_ai.sandbox.hypervisor import start_hypervisor, stop_hypervisor

NUMBERS = (1, 10, 100, 1000)
REPEATS = 5
OWNER = "https://lepton.cloud/xmlns/node/1.0"
# Run by the Python that has libvirt's bindings: each measurement is a name, and milliseconds, calls of libvirt and bytes.
PROBE = """
import json, resource, sys, time
from ansible_collections.lepton.cloud.plugins.module_utils import _libvirt, _node
from ansible_collections.lepton.cloud.plugins.module_utils._results import node_result
host = _libvirt.Host(sys.argv[1], image_dir="/", disk_dir="/", cpu_overcommit=64, memory_reserve=0, run=lambda command: (1, "", ""))
host._memory = lambda: 1 << 40  # the one call that the test driver does not know
def listing():
    return [node_result(node) for node in host.nodes()]
def room():
    domains = host.domains()
    return host.capacity(domains), [node_result(node) for node in _libvirt.owned(domains)]
def one():
    return node_result(host.node("node-0"))
def resize(vcpus):
    wish, node = _node.Wish("node-0", vcpus=vcpus), host.node("node-0")
    plan = _node.make_plan(wish, node, host.room_of(node) if _node.grows(wish, node) else None)
    assert plan.changed
    host.connection.lookupByName("node-0").setVcpusFlags(vcpus, 2)  # at the next start, as a real guest gives no CPU back
def grow():
    resize(2)
def shrink():
    resize(1)
found = {}
for name, do, undo in (
    ("list", listing, None), ("list with capacity", room, None), ("look at one", one, None), ("grow one", grow, shrink), ("shrink one", shrink, grow)
):
    if undo is grow:
        grow()
    calls = [0]
    def count(frame, event, called):
        # A domain's own name and id are in its handle: asking for these, and letting go of it, reaches no hypervisor.
        calls[0] += event == "c_call" and called.__name__.startswith("vir") and called.__name__ not in ("virDomainGetName", "virDomainGetUUID", "virDomainFree")
    sys.setprofile(count); do(); sys.setprofile(None)
    if undo:
        undo()
    began = time.perf_counter(); do()
    found[name] = [(time.perf_counter() - began) * 1000, calls[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]
    if undo is shrink:
        shrink()
print(json.dumps(found))
"""


def hypervisor(folder: Path, count: int) -> str:
    """Write a host with so many running nodes for libvirt's test driver, and return its URI."""
    cpus = "<cpu><mhz>3000</mhz><model>x</model><active>64</active><nodes>1</nodes><sockets>1</sockets><cores>64</cores><threads>1</threads></cpu>"
    nodes = "".join(
        f"<domain type='test'><name>node-{number}</name><metadata><l:node xmlns:l='{OWNER}' image='debian'/></metadata><memory>262144</memory>"
        "<vcpu current='1'>2</vcpu><os><type>hvm</type></os><devices/></domain>"
        for number in range(count)
    )
    (folder / f"{count}.xml").write_text(f"<node>{cpus}<memory>1073741824</memory>{nodes}</node>")
    return f"test://{folder}/{count}.xml"


@contextmanager
def guests(folder: Path, count: int) -> Iterator[str]:
    """Start a libvirtd with so many guests of QEMU, and give its URI."""
    hypervisor = start_hypervisor(folder / str(count))
    try:
        for number in range(count):
            path = folder / f"{count}-{number}.xml"
            path.write_text(
                f"<domain type='qemu'><name>node-{number}</name><metadata><l:node xmlns:l='{OWNER}' image='debian'/></metadata><memory unit='MiB'>32</memory>"
                "<vcpu current='1'>2</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices/></domain>"
            )
            for words in (["define", path], ["start", f"node-{number}"]):
                subprocess.run(["virsh", "-q", "-c", hypervisor.uri, *words], check=True, capture_output=True)
        yield hypervisor.uri
    finally:
        stop_hypervisor(folder / str(count))


def measured(uri: str, interpreter: str) -> dict[str, list[float]]:
    """Return the medians of some runs, by what was done."""
    environment = {**os.environ, "PYTHONPATH": str(collections_path())}
    runs: list[dict[str, list[float]]] = [
        json.loads(subprocess.run([interpreter, "-c", PROBE, uri], env=environment, capture_output=True, text=True, check=True).stdout)
        for _number in range(REPEATS)
    ]
    return {name: [statistics.median(run[name][place] for run in runs) for place in range(3)] for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--real", type=int, nargs="+", default=(), help="as many guests of QEMU, too; 100 take 4 GiB and a minute")
    parser.add_argument("--interpreter", default="/usr/bin/python3", help="a Python that has libvirt's bindings")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[int, Any] = {count: measured(hypervisor(Path(folder), count), args.interpreter) for count in args.nodes}
    real: dict[int, Any] = {}
    for count in args.real:
        with tempfile.TemporaryDirectory(prefix="lep") as folder, guests(Path(folder), count) as uri:
            real[count] = measured(uri, args.interpreter)
    if args.json:
        print(json.dumps({"test driver": found, "QEMU": real}, indent=2))
        return
    print("Nodes of libvirt's test driver:\n\n" + table(found))
    if real:
        print("\nGuests of QEMU:\n\n" + table(real))


def table(found: dict[int, Any]) -> str:
    """Return what was measured as Markdown."""
    lines = ["| " + " | ".join(["what", *(f"{count} nodes" for count in found)]) + " |", "| --- |" + " --- |" * len(found)]
    for name in next(iter(found.values())):
        cells = [f"{milliseconds:.1f} ms, {calls:.0f} calls, {size / 2**20:.0f} MiB" for milliseconds, calls, size in (each[name] for each in found.values())]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What a host with 1, 10, 100 and 1,000 nodes costs to look at and to change: time, calls of libvirt and memory.

    uv run python tests/benchmarks/growth.py [--json] [--nodes N …]

The nodes are of libvirt's test driver, which is part of the client library: what is measured is ours and the library's, and no guest's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lepton_ai.paths import collections_path

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
def resize():
    wanted = 3 - host.node("node-0").live.vcpus
    plan = _node.make_plan(_node.Wish("node-0", vcpus=wanted), host.node("node-0"), host.capacity())
    host.connection.lookupByName("node-0").setVcpusFlags(wanted, 1)
    return plan
found = {}
for name, do in (("list", listing), ("list with capacity", room), ("look at one", one), ("resize one", resize)):
    calls = [0]
    def count(frame, event, called):
        # A domain's own name and id are in its handle: asking for these, and letting go of it, reaches no hypervisor.
        calls[0] += event == "c_call" and called.__name__.startswith("vir") and called.__name__ not in ("virDomainGetName", "virDomainGetUUID", "virDomainFree")
    sys.setprofile(count); do(); sys.setprofile(None)
    began = time.perf_counter(); do()
    found[name] = [(time.perf_counter() - began) * 1000, calls[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]
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
    parser.add_argument("--interpreter", default="/usr/bin/python3", help="a Python that has libvirt's bindings")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[int, Any] = {count: measured(hypervisor(Path(folder), count), args.interpreter) for count in args.nodes}
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print("| " + " | ".join(["what", *(f"{count} nodes" for count in found)]) + " |")
    print("| --- |" + " --- |" * len(found))
    for name in next(iter(found.values())):
        cells = [f"{milliseconds:.1f} ms, {calls:.0f} calls, {size / 2**20:.0f} MiB" for milliseconds, calls, size in (each[name] for each in found.values())]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()

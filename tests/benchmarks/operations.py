# SPDX-License-Identifier: Apache-2.0
"""What an operation costs: `python tests/benchmarks/operations.py [--json]`.

Measured side by side in one run, against the sandbox's own hypervisor: how long Slack waits for an acknowledgement, what one
`node list` takes over 1, 10 and 100 hosts (inventory entries of this one machine, so its cores are the limit), and what the
bot adds to plain `ansible-playbook`. Prints times and ratios and asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from lepton_ai.paths import builtin_playbooks, sandbox_inventory
from lepton_ai.sandbox.people import Person
from lepton_ai.sandbox.stand import Stand, stand, stop_stand

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 5
HOSTS = (1, 10, 100)


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def inventory_of(folder: Path, count: int) -> Path:
    """Write an inventory in which this machine stands `count` times."""
    content = yaml.safe_load((sandbox_inventory() / "hosts.yml").read_text())
    group = content["hypervisors"]
    (here,) = group["hosts"].values()
    group["hosts"] = {f"host{number}": here for number in range(count)}
    path = folder / f"hosts-{count}.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def list_nodes(running: Stand, inventory: Path) -> None:
    environment = {**os.environ, "LEPTON_SANDBOX": str(running.folder)}
    command = [ROOT / ".venv/bin/ansible-playbook", "-i", inventory, builtin_playbooks() / "node" / "list.yml"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)


def measure(running: Stand) -> dict[str, float]:
    ada = Person(running.base_url)
    found: dict[str, float] = {}
    # The workspace answers `say` when the app has acknowledged, so its time is what Slack waits for.
    found["ack_help_s"] = statistics.median(seconds(lambda: ada.say("/lepton help")) for _ in range(REPEATS))
    found["ack_request_s"] = statistics.median(seconds(lambda: ada.say("/lepton node list")) for _ in range(REPEATS))

    def listed() -> None:
        ada.say("/lepton node list")
        ada.wait(lambda text: "*done*" in text)

    ada.wait(lambda text: "*done*" in text)
    found["list_by_slack_s"] = statistics.median(seconds(listed) for _ in range(REPEATS))
    for count in HOSTS:
        inventory = inventory_of(running.folder, count)
        repeats = REPEATS if count < 100 else 1
        found[f"list_{count}_hosts_s"] = statistics.median(seconds(lambda path=inventory: list_nodes(running, path)) for _ in range(repeats))
    found["ratio_slack_to_plain"] = found["list_by_slack_s"] / found["list_1_hosts_s"]
    found["ratio_10_hosts_to_1"] = found["list_10_hosts_s"] / found["list_1_hosts_s"]
    found["ratio_100_hosts_to_1"] = found["list_100_hosts_s"] / found["list_1_hosts_s"]
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    try:
        with stand(folder) as running:
            found = measure(running)
    finally:
        stop_stand(folder)
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:8.3f}")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What many people at once cost: `python tests/benchmarks/load.py [--people N] [--commands N] [--seconds S] [--json]`.

People type commands into the sandbox workspace over Socket Mode, evenly over the time given. Prints how long each waited for its
acknowledgement (the sandbox's own HTTP included), and whether every command ran exactly once. Asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import yaml
from tests.conftest import write_playbook

from lepton_ai.sandbox.stand import Stand, stand, stop_stand
from lepton_ai.sandbox.workspace import TEAM

LONGEST_SECONDS = 1800


def prepare(running: Stand, people: int, trace: Path) -> None:
    """Make the people, their right, and an operation that leaves a line for each run."""
    settings = yaml.safe_load((running.site / "lepton.yml").read_text())
    settings["access"]["grants"].append({"role": "operator", "principals": [f"slack:{TEAM}/ULOAD*"]})
    (running.site / "lepton.yml").write_text(yaml.safe_dump(settings))
    for number in range(people):
        user = f"ULOAD{number}"
        running.sandbox.workspace.users[user] = {"id": user, "team_id": TEAM, "name": f"load{number}", "is_bot": False, "deleted": False}
    argv = f"[sh, -c, 'echo $1 >> {trace}', sh, '{{{{ word }}}}']"
    tasks = f"- name: Leave a line\n  ansible.builtin.command:\n    argv: {argv}\n  changed_when: true"
    options, own = "{word: {type: str, required: true}}", "{risk: change, rerun: safe, plan: check, positional: [word]}"
    write_playbook(running.site / "playbooks", "load", "line", tasks, options=options, lepton=own)


async def type_all(running: Stand, people: int, commands: int, seconds: float) -> tuple[list[float], int]:
    """Return how long each command waited for its acknowledgement, and how many were not acknowledged."""
    begun = time.perf_counter()
    failed = 0

    async def say(client: httpx.AsyncClient, number: int) -> float:
        nonlocal failed
        await asyncio.sleep(max(0.0, number * seconds / commands - (time.perf_counter() - begun)))
        body = {"user": f"ULOAD{number % people}", "channel": "C0OPS", "text": f"/lepton load line n{number}"}
        asked = time.perf_counter()
        answer = (await client.post(f"{running.base_url}people/say", json=body)).json()
        failed += not answer["ok"]
        return time.perf_counter() - asked

    async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=people)) as client:
        return list(await asyncio.gather(*(say(client, number) for number in range(commands)))), failed


def measure(running: Stand, people: int, commands: int, seconds: float, trace: Path) -> dict[str, float]:
    waits, failed = asyncio.run(type_all(running, people, commands, seconds))
    refused = sum("failed with the error" in str(message["text"]) for message in running.sandbox.workspace.messages["C0OPS"])
    begun = time.monotonic()
    while len(lines := trace.read_text().split() if trace.exists() else []) < commands - failed - refused and time.monotonic() - begun < LONGEST_SECONDS:
        time.sleep(1)
    return {
        "commands": commands,
        "not_acknowledged": failed + refused,
        "ack_median_s": round(statistics.median(waits), 4),
        "ack_p99_s": round(statistics.quantiles(waits, n=100)[98], 4),
        "ack_max_s": round(max(waits), 4),
        "acks_over_1_s": sum(wait > 1 for wait in waits),
        "ran": len(set(lines)),
        "ran_twice": len(lines) - len(set(lines)),
        "all_done_after_s": round(time.monotonic() - begun + seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--commands", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    try:
        with stand(folder, start_bot=False) as running:
            prepare(running, given.people, folder / "trace")
            running.start_bot()
            found = measure(running, given.people, given.commands, given.seconds, folder / "trace")
    finally:
        stop_stand(folder)
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found) if given.json else "\n".join(f"{name:24} {value:>10}" for name, value in found.items()))


if __name__ == "__main__":
    main()

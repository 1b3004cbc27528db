# SPDX-License-Identifier: Apache-2.0
"""What clients of a service notice while it is changed: requests, dropped ones and latency, before, during and after, in one run.

Usage: PYTHONPATH=. .venv/bin/python tests/benchmarks/services.py [--json]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.test_services import Site
from tests.load import load

from lepton_ai.sandbox.stand import stand, stop_stand

QUIET_SECONDS = 5


def measure(site: Site) -> list[dict[str, Any]]:
    """Return one row for each thing that is done to the service."""
    site.do("create")
    rows = []

    def during(what: str, *actions: Any) -> None:
        begun = time.monotonic()
        with load(site.url) as counted:
            for action in actions:
                action()
        rows.append(
            {"what": what, "requests": counted.requests, "dropped": counted.dropped, "p50_ms": round(counted.p50, 1), "p99_ms": round(counted.p99, 1),
             "longest_ms": round(counted.longest), "seconds": round(time.monotonic() - begun, 1)}
        )  # fmt: skip

    def quiet() -> None:
        time.sleep(QUIET_SECONDS)

    def refused(image: str) -> None:
        assert site.playbook("update", service="chat", image=image).returncode

    def kill() -> None:
        time.sleep(1)
        site.docker("kill", min(site.servers()))
        time.sleep(2)
        site.do("reconcile")

    def reload() -> None:
        assert site.stand.balancer is not None
        for _ in range(3):
            subprocess.run(["sh", "-c", f"echo reload | nc -NU {site.stand.balancer.folder}/master.sock"], check=True, capture_output=True)
            time.sleep(1)

    during("before: 1 replica, nothing is done", quiet)
    during("scale 1 to 4", lambda: site.do("scale", replicas=4))
    during("4 replicas, nothing is done", quiet)
    during("scale 4 to 1", lambda: site.do("scale", replicas=1))
    site.do("scale", replicas=2)
    during("roll 2 replicas to a new image", lambda: site.do("update", image="model:2"))
    during("roll to an image that does not start, and back", lambda: refused("model:broken"))
    during("roll to an image that answers errors, and back", lambda: refused("model:flaky"))
    during("kill a replica, and mend", kill)
    during("reload HAProxy 3 times", reload)
    during("after: 2 replicas, nothing is done", quiet)
    site.do("delete")
    return rows


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    try:
        with stand(folder, start_bot=False) as running:
            rows = measure(Site(running))
    finally:
        stop_stand(folder)
        shutil.rmtree(folder, ignore_errors=True)
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=2))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()

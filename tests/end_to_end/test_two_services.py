# SPDX-License-Identifier: Apache-2.0
"""Two services on one PostgreSQL, as on two machines: the second has its own process numbers, so only leases tell of the first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import eventually, write_probes
from tests.runs.test_store import postgres_url

from lepton_ai.paths import sandbox_inventory
from lepton_ai.sandbox.stand import free_port

__all__ = ["postgres_url"]
pytestmark = [pytest.mark.postgres, pytest.mark.slow]
# A service learns within seconds what otherwise takes half a minute.
QUICK = "import lepton_ai.runs.leases as l\nl.LEASE_SECONDS, l.RENEW_SECONDS = 6.0, 2.0\nimport lepton_ai.serve as s\ns.ORPHAN_SECONDS = 1.0\n"
MACHINE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@dataclass
class Machine:
    """One service, in process numbers of its own."""

    site: Path
    quick: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(self.quick)}
        self.process = subprocess.Popen([*MACHINE, sys.executable, "-m", "lepton_ai", "serve", "--site", str(self.site)], cwd="/", env=environment)
        eventually(lambda: (self.site / ".lepton" / "lepton.sock").exists(), 30)

    @property
    def service(self) -> int:
        """The service's own process, as this side sees it."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def end(self) -> None:
        if self.process is not None:
            os.kill(self.service, signal.SIGKILL)  # the first process of its numbers: all others go with it
            self.process.wait(20)
            (self.site / ".lepton" / "lepton.sock").unlink(missing_ok=True)
            self.process = None

    def ask(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lepton_ai", *words, "--site", str(self.site)]
        return subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def runs(self) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "lepton_ai", "runs", "--json", "--site", str(self.site)]
        found: list[dict[str, Any]] = json.loads(subprocess.check_output(command, cwd="/"))
        return found


@pytest.fixture
def machines(postgres_url: str) -> Iterator[tuple[Machine, Machine, Path]]:
    if os.geteuid():
        pytest.skip("NOT TESTED (postgres): process numbers of its own need root")
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    (folder / "quick").mkdir()
    (folder / "quick" / "sitecustomize.py").write_text(QUICK)
    write_probes(folder / "playbooks", folder / "trace")
    made = []
    for name in ("a", "b"):
        site = folder / name
        site.mkdir()
        settings = {"inventory": str(sandbox_inventory()), "playbooks": str(folder / "playbooks"), "database_url": postgres_url, "port": free_port()}
        (site / "lepton.yml").write_text(yaml.safe_dump(settings))
        made.append(Machine(site, folder / "quick"))
    for machine in made:
        machine.start()
    yield made[0], made[1], folder / "trace"
    for machine in made:
        machine.end()
    shutil.rmtree(folder, ignore_errors=True)


def test_two_services_share_their_runs_and_none_is_lost_or_at_two_places(machines: tuple[Machine, Machine, Path]) -> None:
    one, other, trace = machines

    def lines() -> list[str]:
        return trace.read_text().split() if trace.exists() else []

    # A cancel that reaches the other service ends the run all the same.
    asked = one.ask("run", "probe", "slow")
    eventually(lambda: lines() == ["begin"])
    (run,) = other.runs()
    assert run["state"] == "running"
    assert other.ask("runs", "cancel", run["id"]).wait(20) == 0
    assert asked.wait(20) == 3
    assert lines() == ["begin"]

    # A service that is gone with its machine: the other takes its run up when the lease has expired.
    one.ask("run", "probe", "slow")
    eventually(lambda: lines() == ["begin"] * 2)
    one.end()
    eventually(lambda: lines() == ["begin"] * 3, 40)
    Path(f"{trace}.go").touch()
    eventually(lambda: other.runs()[0]["state"] == "succeeded", 30)
    assert lines() == ["begin"] * 3 + ["end"]

    # A service that only stood still: the other goes on, and the first ends what it was at and writes nothing over it.
    Path(f"{trace}.go").unlink()
    one.start()
    one.ask("run", "probe", "slow")
    eventually(lambda: lines() == ["begin"] * 3 + ["end", "begin"])
    stood_still = one.service
    assert below(stood_still, b"probe/slow.yml")
    os.kill(stood_still, signal.SIGSTOP)
    eventually(lambda: lines() == ["begin"] * 3 + ["end", "begin", "begin"], 40)
    os.kill(stood_still, signal.SIGCONT)
    eventually(lambda: not below(stood_still, b"probe/slow.yml"), 20)
    assert below(other.service, b"probe/slow.yml")
    Path(f"{trace}.go").touch()
    eventually(lambda: other.runs()[0]["state"] == "succeeded", 30)
    assert lines() == ["begin"] * 3 + ["end", "begin", "begin", "end"]
    assert [run["state"] for run in other.runs()] == ["succeeded", "succeeded", "canceled"]


def below(ancestor: int, mark: bytes) -> list[int]:
    """Return the processes below one whose command line has the mark."""
    found = []
    for thread in Path(f"/proc/{ancestor}/task").iterdir():
        try:
            for child in map(int, (thread / "children").read_text().split()):
                found += [child] if mark in Path(f"/proc/{child}/cmdline").read_bytes() else []
                found += below(child, mark)
        except OSError:  # it ended meanwhile
            continue
    return found

# SPDX-License-Identifier: Apache-2.0
"""DBOS around the runs, on SQLite and on PostgreSQL. In a process of its own: DBOS is one per process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import write_playbook
from tests.runs.test_store import postgres_url

from lepton_ai.settings import Settings

__all__ = ["postgres_url"]
pytestmark = pytest.mark.slow
PROGRAM = """
import sys, time
from pathlib import Path
from lepton_ai.runs.model import Request
from lepton_ai.runs.queue import Queue, SCHEMA_VERSION
from lepton_ai.runs.service import Runs
from lepton_ai.runs.store import Store
from lepton_ai.settings import load_settings
settings = load_settings(Path(sys.argv[1]))
store = Store(settings.state_dir, settings.database_url)
runs = Runs(settings, settings.catalog(), store)
written, _ = runs.submit(Request("x.y", {}, "os:0@here", key="written before the service started"))
queue = Queue(runs)
run, _ = runs.submit(Request("x.y", {}, "os:0@here", key="k"))
queue.start(run.id)
deadline = time.monotonic() + 60
while not (store.run(run.id).state.final and store.run(written.id).state.final):
    assert time.monotonic() < deadline, "not ended"
    time.sleep(0.5)
    queue.take_up_orphans()
print(store.run(run.id).state, store.run(written.id).state)
from dbos import DBOS
print(sorted({workflow.app_version for workflow in DBOS.list_workflows()}) == [SCHEMA_VERSION])
queue.close(5)
"""


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_runs_start_and_what_was_written_before_a_crash_is_taken_up(site: Settings, database: str, request: pytest.FixtureRequest) -> None:
    write_playbook(site.playbooks, "x", "y", "- name: Do\n  ansible.builtin.command:\n    argv: ['true']\n  changed_when: false")
    if database == "postgres":
        path = site.site / "lepton.yml"
        path.write_text(path.read_text() + yaml.safe_dump({"database_url": request.getfixturevalue("postgres_url")}))
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(site.site)], capture_output=True, text=True, check=False, timeout=120, cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["succeeded succeeded", "True"]

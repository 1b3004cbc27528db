# SPDX-License-Identifier: Apache-2.0
"""A composite operation on a real node: what is approved is a list of steps, and that list is what is done."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT, eventually
from tests.end_to_end.test_people import virsh
from tests.end_to_end.test_survival import lepton

from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand
from lepton_ai.slack.views import APPROVE, REJECT

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]


@pytest.fixture
def ada(workspace_stand: Stand) -> Person:
    return Person(workspace_stand.base_url)


@pytest.fixture(scope="module")
def node(workspace_stand: Stand) -> Iterator[str]:
    lepton(workspace_stand, "run", "node", "create", "again-1", "image=guest", "memory=64MiB", "max_vcpus=3", "disk=64MiB")
    yield "again-1"
    if "again-1" in virsh(workspace_stand, "list", "--all", "--name").split():  # the last test may end without it
        lepton(workspace_stand, "run", "node", "release", "again-1", "--yes")


def identity(stand: Stand, node: str) -> tuple[str, str, int]:
    """Return what tells this node from a later one of its name: its UUID, its state, its disk."""
    return virsh(stand, "domuuid", node), virsh(stand, "domstate", node), (stand.folder / "disks" / f"{node}.qcow2").stat().st_ino


def playbook(stand: Stand, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", ROOT / "inventories/sandbox", ROOT / "playbooks/node/rebuild.yml", *words],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT, env={**os.environ, "LEPTON_SANDBOX": str(stand.folder), "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip


def test_the_approved_steps_are_done_in_order_and_nothing_before(workspace_stand: Stand, ada: Person, node: str) -> None:
    before = identity(workspace_stand, node)
    ada.say(f"/lepton node rebuild {node}")
    plan = ada.wait(lambda text: "[Do it]" in text)
    assert "1. here: remove again-1 with its disk\n2. here: make again-1 from guest and start it" in text_of(plan)
    assert "`state` running → *absent*" in text_of(plan)
    assert "`state` absent → *running*" in text_of(plan)
    assert identity(workspace_stand, node) == before
    ada.seen = plan["ts"]
    ada.press(plan, APPROVE, copies=2)
    ada.wait(lambda text: "*changed*" in text and "of the approved plan" in text)
    after = identity(workspace_stand, node)
    assert after[0] != before[0]
    assert after[1] == "running"
    assert "max_vcpus" not in text_of(plan) or virsh(workspace_stand, "vcpucount", node, "--maximum", "--config") == "3"
    assert len([message for message in ada.answers() if "of the approved plan" in text_of(message)]) == 1


def test_a_node_that_changed_since_is_left_as_it_is(workspace_stand: Stand, ada: Person, node: str) -> None:
    ada.say(f"/lepton node rebuild {node}")
    plan = ada.wait(lambda text: "[Do it]" in text)
    virsh(workspace_stand, "destroy", node)
    before = identity(workspace_stand, node)
    ada.seen = plan["ts"]
    ada.press(plan, APPROVE)
    ada.wait(lambda text: "what would be planned now is not what was approved, so nothing was done" in text)
    assert identity(workspace_stand, node) == before
    virsh(workspace_stand, "start", node)


def test_what_cannot_be_made_again_is_not_removed(workspace_stand: Stand, ada: Person, node: str) -> None:
    before = identity(workspace_stand, node)
    ada.say(f"/lepton node rebuild {node} image=nope")
    ada.wait(lambda text: "here has no image nope: expected one of guest" in text)
    assert identity(workspace_stand, node) == before
    ada.say(f"/lepton node rebuild {node}")
    ada.press(ada.wait(lambda text: "[Do it]" in text), REJECT)
    ada.wait(lambda text: "rejected by" in text)
    assert identity(workspace_stand, node) == before


def test_every_door_plans_and_does_the_same(workspace_stand: Stand, node: str, tmp_path: Path) -> None:
    before = identity(workspace_stand, node)
    planned = lepton(workspace_stand, "plan", "node", "rebuild", node, "--json")
    steps = [step["title"] for step in planned["result"]["plan"]["steps"]]
    assert steps == ["remove again-1 with its disk", "make again-1 from guest and start it"]
    checked = playbook(workspace_stand, "-e", f"node={node}", "--check")
    assert checked.returncode == 0, checked.stdout
    assert identity(workspace_stand, node) == before
    # A plan that was tampered with is not done, nor is it when the machine has moved on.
    forged = planned["result"]["plan"]
    forged["steps"][0]["args"]["name"] = "other"
    (tmp_path / "forged.json").write_text(json.dumps({"lepton_plan": forged}))
    refused = playbook(workspace_stand, "-e", f"node={node}", "-e", f"@{tmp_path / 'forged.json'}")
    assert refused.returncode != 0
    assert "is not as it was made" in refused.stdout
    assert identity(workspace_stand, node) == before
    done = playbook(workspace_stand, "-e", f"node={node}")
    assert done.returncode == 0, done.stdout
    assert identity(workspace_stand, node)[0] != before[0]


def test_a_cancel_between_the_steps_says_which_was_not_done(workspace_stand: Stand, ada: Person, node: str) -> None:
    """Cut short after the first step, the message says from looking again that the second was not done."""
    ada.say(f"/lepton node rebuild {node}")
    plan = ada.wait(lambda text: "[Do it]" in text)
    run = next(block["block_id"] for block in plan["blocks"] if block["type"] == "actions").removeprefix("run-")
    ada.seen = plan["ts"]
    ada.press(plan, APPROVE)
    released = eventually(lambda: next((item["id"] for item in lepton(workspace_stand, "runs", "--json") if item["approved_plan"] == run), None))
    eventually(lambda: node not in virsh(workspace_stand, "list", "--all", "--name").split() or None, 30)
    lepton(workspace_stand, "runs", "cancel", released)
    ended = ada.wait(lambda text: "*canceled*" in text or "*changed*" in text)
    if "*canceled*" in text_of(ended):  # it may just have been quick enough to end
        exists = node in virsh(workspace_stand, "list", "--all", "--name").split()
        assert ('seen afterwards, not done: here state "absent" to "running"' in text_of(ended)) == (not exists), text_of(ended)

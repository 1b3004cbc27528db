# SPDX-License-Identifier: Apache-2.0
"""The same arguments through every door have the same outcome: Slack, the command line, Python, plain ansible-playbook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import LeptonError
from lepton_ai.resources import CPUResource, MemoryResource, VirtualNode, perform
from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand
from lepton_ai.settings import load_settings

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
Outcome = dict[str, Any] | str
DEFAULTS = {"number": 1, "size": None, "flag": False, "many": None, "kind": "a"}
CASES: list[tuple[dict[str, str], Outcome]] = [
    ({"word": "x", "number": "3", "size": "8gib", "flag": "yes", "many": "a,b"}, {"word": "x", "number": 3, "size": "8GiB", "flag": True, "many": ["a", "b"]}),
    ({"word": "{{ lookup('pipe','id') }}"}, {"word": "{{ lookup('pipe','id') }}"}),
    ({"word": "a b; rm -rf / 'q'"}, {"word": "a b; rm -rf / 'q'"}),
    ({}, "word: is required"),
    ({"word": "x", "number": "three"}, "unable to convert to int"),
    ({"word": "x", "kind": "c"}, "value of kind must be one of: a, b"),
    ({"word": "x", "nombre": "3"}, "nombre: unknown parameter; did you mean number?"),
    ({"word": "x", "size": "big"}, "size: 'big' is not a size"),
    ({"word": "a\u200bb"}, "invisible character U+200B"),
]


def echoed(stand: Stand) -> Outcome:
    path = stand.folder / "trace.echo"
    found: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return found


def by_slack(stand: Stand, values: dict[str, str]) -> Outcome:
    ada = Person(stand.base_url)
    quoted = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
    ada.say(f"/lepton probe echo {quoted}")
    if "word" not in values:  # what is missing is asked for in a form
        return "; ".join(f"{field}: {error}" for field, error in ada.fill_in(ada.view(), **values).items())
    answer = text_of(ada.wait(lambda text: "*changed*" in text or "*nothing to change*" in text or "❌" in text or ":x:" in text))
    return answer if ":x:" in answer else echoed(stand)


def by_cli(stand: Stand, values: dict[str, str]) -> Outcome:
    words = [f"{name}={value}" for name, value in values.items()]
    done = subprocess.run(
        [sys.executable, "-m", "lepton_ai", "run", "probe", "echo", *words, "--site", str(stand.site)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert "Traceback" not in done.stderr
    return done.stderr if done.returncode else echoed(stand)


def by_python(stand: Stand, values: dict[str, str]) -> Outcome:
    try:
        perform(load_settings(stand.site), "probe", "echo", dict(values))
    except LeptonError as error:
        return str(error)
    return echoed(stand)


def by_ansible(stand: Stand, values: dict[str, str]) -> Outcome:
    untrusted = json.dumps({name: {"__ansible_unsafe": value} for name, value in values.items()})
    playbook = stand.site / "playbooks/probe/echo.yml"
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", ROOT / "inventories/sandbox", playbook, "-e", untrusted],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "LEPTON_SANDBOX": str(stand.folder)},
    )  # fmt: skip
    return done.stdout + done.stderr if done.returncode else echoed(stand)


@pytest.mark.parametrize("door", [by_slack, by_cli, by_python, by_ansible])
@pytest.mark.parametrize(("values", "expected"), CASES)
def test_every_door_agrees(workspace_stand: Stand, door: Callable[[Stand, dict[str, str]], Outcome], values: dict[str, str], expected: Outcome) -> None:
    outcome = door(workspace_stand, values)
    if isinstance(expected, str):
        assert expected in str(outcome)
        assert not (workspace_stand.folder / "trace.echo").exists()
    else:
        assert outcome == {**DEFAULTS, **expected}


def test_the_python_api_makes_resizes_and_releases_a_node(workspace_stand: Stand) -> None:
    uri = workspace_stand.hypervisor.uri

    def virsh(*words: str) -> str:
        return subprocess.run(["virsh", "-q", "-c", uri, *words], capture_output=True, text=True, check=False).stdout.strip()

    node = VirtualNode(CPUResource(1), MemoryResource(0.125), name="api-1", site=workspace_stand.site)
    try:
        assert virsh("domstate", "api-1") == "running"
        node.adjust_resources()
        node.adjust_resources(cpu=CPUResource(2))
        assert virsh("vcpucount", "api-1", "--live", "--current") == "2"
        with pytest.raises(LeptonError, match="does not fit on this host"):
            node.adjust_resources(memory=MemoryResource(9_000))
        assert virsh("vcpucount", "api-1", "--live", "--current") == "2"
    finally:
        node.release_resources()
    assert "api-1" not in virsh("list", "--all", "--name")
    with pytest.raises(LeptonError, match="no host has a node api-1"):
        node.release_resources()


@pytest.mark.skipif(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 10 << 30, reason="the sample's node has 8 GiB, and memory is not overcommitted")
def test_the_sample_runs_as_printed(workspace_stand: Stand) -> None:
    program = "from lepton_ai import VirtualNode\nfrom lepton_ai.resources import CPUResource, MemoryResource\nnode = VirtualNode(CPUResource(4), MemoryResource(8))\nnode.adjust_resources()\nnode.release_resources()\n"  # fmt: skip  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/", env={**os.environ, "LEPTON_SITE": str(workspace_stand.site)}
    )
    assert done.returncode == 0, done.stderr


def test_an_inventory_without_hypervisors_is_a_failure_and_not_a_green_nothing(workspace_stand: Stand, tmp_path: Path) -> None:
    empty = tmp_path / "hosts.yml"
    empty.write_text("all:\n  hosts:\n    other:\n")
    done = subprocess.run([ROOT / ".venv/bin/ansible-playbook", "-i", empty, "playbooks/node/list.yml"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert "no host in the group hypervisors" in done.stdout + done.stderr

# SPDX-License-Identifier: Apache-2.0
"""Secrets are planted wherever one can be, and every place that anything leaves by is searched for them."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, write_playbook

from lepton_ai import masking
from lepton_ai.access.matching import Caller
from lepton_ai.intake import Intake
from lepton_ai.masking import MASK, Mask
from lepton_ai.runs.model import Run, State
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.service import Runs
from lepton_ai.settings import Settings
from lepton_ai.slack.views import run_message

OWNER = "os:0@here"
PLANTED = {
    "argument": "Argument-5ecret!", "inventory": "inventory 5ecret", "nested": "nested&5ecret<>", "vaulted": "vaulted-5ecret",
    "environment": "environment-5ecret", "service": "service-5ecret-1234", "shaped": "ghp_" + "aB3" * 12,
}  # fmt: skip
TASKS = """
- name: Check
  lepton.cloud.operation:
- name: In a result
  ansible.builtin.debug:
    msg: "{{ password }} {{ db_password }} {{ api.token }} {{ kept }} {{ lookup('env', 'SOME_TOKEN') }} {{ shaped }} service-5ecret-1234"
- name: In a diff and a changed field
  ansible.builtin.copy:
    content: "{{ password }} {{ db_password }} {{ api.token }} {{ kept }} {{ shaped }}"
    dest: "{{ target }}"
    mode: "0600"
- name: "In stderr, a traceback and a failure"
  ansible.builtin.command:
    argv: [python3, -c, "import sys; print(sys.argv, file=sys.stderr); raise SystemExit(str(sys.argv))", "{{ password }}", "{{ db_password }}",
      "{{ api.token }}", "{{ kept }}", "{{ shaped }}"]
  changed_when: true
  ignore_errors: true
- name: In why it failed
  ansible.builtin.fail:
    msg: "{{ password }} {{ db_password }} {{ api.token }} {{ kept }} {{ shaped }}"
"""


@pytest.mark.slow
def test_planted_secrets_are_found_nowhere_but_where_they_are_used(
    site: Settings, make_runs: Callable[[], Runs], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_TOKEN", PLANTED["environment"])
    monkeypatch.setattr(masking.service_mask, "_known", set())
    masking.service_mask.learn([PLANTED["service"]])
    options = "{password: {type: str, no_log: true}, word: {type: str}, target: {type: str}}"
    write_playbook(site.playbooks, "x", "y", TASKS, options=options)
    vault = tmp_path / "vault"
    vault.write_text("open sesame")
    encrypt = [ROOT / ".venv/bin/ansible-vault", "encrypt_string", "--vault-password-file", vault, PLANTED["vaulted"]]
    encrypted = subprocess.run(encrypt, check=True, capture_output=True, text=True).stdout.strip()
    (site.site / "ansible.cfg").write_text(f"[defaults]\nvault_password_file = {vault}\n")
    inventory = site.site / "hosts.yml"
    indented = encrypted.replace("\n", "\n        ")
    inventory.write_text(
        f"all:\n  hosts:\n    localhost:\n      ansible_connection: local\n      db_password: '{PLANTED['inventory']}'\n"
        f"      api: {{token: '{PLANTED['nested']}'}}\n      shaped: {PLANTED['shaped']}\n      kept: {indented}\n"
        "      broken: '{{ nothing_of_that_name }}'\n"
    )
    runs = make_runs()
    runs.settings = site.model_copy(update={"inventory": inventory, "environment": ["SOME_TOKEN"]})
    told: list[Any] = []
    runs.listeners.append(lambda run, progress: told.append((run, progress.result, progress.hosts, progress.task)))
    given = {"password": PLANTED["argument"], "word": PLANTED["shaped"], "target": str(tmp_path / "used")}
    run, _ = Intake(runs, OWNER).submit_values(Caller(OWNER), runs.catalog.operations["x.y"], given, key="k", why=PLANTED["service"])
    ended = runs.execute(run.id)
    assert ended.state is State.FAILED
    used = (tmp_path / "used").read_text()
    for name in ("argument", "inventory", "nested", "vaulted", "shaped"):
        assert PLANTED[name] in used, name  # it was really there to be shown
    assert MASK in ended.error
    places: dict[str, str] = {"listeners": str(told), "run": str(ended), "audit": json.dumps(runs.store.audit(), default=str)}
    places["message"] = str(run_message(ended, Progress()))
    printed = capsys.readouterr()
    places["printed"] = printed.out + printed.err
    for file in site.state_dir.rglob("*"):
        if file.is_file():
            places[str(file)] = file.read_bytes().decode("utf-8", "replace")
    assert any("output" in place for place in places)
    for place, text in places.items():
        for name, secret in PLANTED.items():
            for written in (secret, json.dumps(secret)[1:-1], base64.b64encode(secret.encode()).decode()):
                assert written not in text, f"{name} in {place}"


def test_what_looks_like_a_token_is_masked_and_what_does_not_stays() -> None:
    mask = Mask(["abc", "x" * 5, "one\nlong line of it\n"])
    shaped = [
        "xoxb-1234567890-abcdefghij", "ghp_" + "a" * 36, "AKIAABCDEFGHIJKLMNOP", "postgresql://lepton:pa55@db/x",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n-----END OPENSSH PRIVATE KEY-----", "a xxxxx b", "on a long line of it there",
    ]  # fmt: skip
    for text in shaped:
        assert MASK in mask(text), text
    assert mask("postgresql://lepton:pa55@db/x") == f"postgresql://{MASK}@db/x"
    for text in ("abc", "web-1", "http://127.0.0.1:8020/x", "node/web-1 vcpus=3", "a@b.c"):
        assert mask(text) == text
    assert mask({"k": ["xxxxx", 3, None]}) == {"k": [MASK, 3, None]}
    assert Mask(["123456", "changed"])({"changed": True, "pin": 123456, "text": "changed"}) == {"changed": True, "pin": MASK, "text": MASK}


def test_a_text_made_to_stall_the_mask_does_not() -> None:
    begun = time.perf_counter()
    for text in ("-eyJ" * 100_000, "eyJaaaaaaaaaaa." * 50_000, "://a:" * 50_000, "-----BEGIN PRIVATE KEY-----" * 20_000, "xoxb-" * 50_000):
        Mask()(text)
    assert time.perf_counter() - begun < 30  # minutes, where a shape looks at everything for every beginning


def test_a_run_is_told_of_what_it_was_given_though_it_is_masked(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", "- name: Do\n  ansible.builtin.debug:\n    msg: x", options="{word: {type: str}}")
    runs = make_runs()
    run: Run = Intake(runs, OWNER).submit_values(Caller(OWNER), runs.catalog.operations["x.y"], {"word": PLANTED["shaped"]}, key="k")[0]
    assert run.arguments["word"] == MASK
    assert runs.arguments(run)["word"] == PLANTED["shaped"]


def test_logs_are_masked_whoever_writes_them() -> None:
    program = (
        "import logging, structlog\nfrom lepton_ai.logs import configure_logs\nfrom lepton_ai.masking import service_mask\n"
        "configure_logs()\nservice_mask.learn(['service-5ecret-1234'])\n"
        "structlog.get_logger().error('a line', text='service-5ecret-1234')\n"
        "try:\n    raise ValueError('service-5ecret-1234')\nexcept ValueError:\n"
        "    structlog.get_logger().exception('one')\n    logging.getLogger('somebody').exception('two')\n"
    )
    done = subprocess.run([ROOT / ".venv/bin/python", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count(MASK) >= 3
    assert "5ecret" not in done.stderr + done.stdout

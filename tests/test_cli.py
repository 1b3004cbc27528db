# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, what goes where, completion, and a doctor that names what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lepton_ai.settings import Settings
from tests.conftest import ROOT, write_playbook

pytestmark = pytest.mark.slow


def lepton(*words: str, site: Path | None = None, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLACK_", "LEPTON_"))}
    where = ["--site", str(site)] if site else []
    done = subprocess.run([sys.executable, "-m", "lepton_ai", *words, *where], capture_output=True, text=True, check=False, cwd="/", env={**clean, **(environment or {})}, timeout=60)  # fmt: skip  # noqa: E501
    assert "Traceback" not in done.stderr
    return done


def probe(site: Settings, argv: str, lepton_part: str = "{risk: change, rerun: safe, plan: check}") -> None:
    write_playbook(site.playbooks, "x", "y", f"- name: Do\n  ansible.builtin.command:\n    argv: {argv}\n  changed_when: true", lepton=lepton_part)


@pytest.mark.parametrize(("argv", "code", "state"), [("['true']", 0, "succeeded"), ("['false']", 1, "failed")])
def test_a_run_ends_with_its_code_and_json_is_only_json(site: Settings, argv: str, code: int, state: str) -> None:
    probe(site, argv)
    done = lepton("run", "x", "y", "--json", site=site.site)
    assert done.returncode == code
    assert json.loads(done.stdout)["state"] == state
    shown = lepton("runs", "show", json.loads(done.stdout)["id"], site=site.site)
    assert state in shown.stdout
    assert "requested" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "x"], "a noun and a verb"),
        (["run", "z", "y"], "did you mean|expected one of"),
        (["run", "x", "y", "a=1"], "unknown parameter"),
        (["runs", "show", "nope"], "there is no run nope"),
        (["runs", "cancel", "nope"], "no service runs here"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(site: Settings, words: list[str], message: str) -> None:
    probe(site, "['true']")
    done = lepton(*words, site=site.site)
    assert done.returncode == 2
    assert any(part in done.stderr for part in message.split("|"))


def test_what_destroys_is_not_done_unasked(site: Settings, tmp_path: Path) -> None:
    probe(site, f"[touch, {tmp_path / 'gone'}]", "{risk: destroy, plan: check}")
    done = lepton("run", "x", "y", site=site.site)
    assert done.returncode == 2
    assert "say --yes" in done.stderr
    assert not (tmp_path / "gone").exists()
    assert lepton("run", "x", "y", "--yes", site=site.site).returncode == 0
    assert (tmp_path / "gone").exists()


def test_no_site_says_how_to_make_one() -> None:
    done = lepton("run", "node", "list")
    assert done.returncode == 2
    assert "lepton init" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [("inventry: x", "inventry: Extra inputs"), ("slack: {mode: pigeon}", "slack.mode"), ("a: [", "not YAML"), ("[]", "expected a mapping")],
)
def test_wrong_settings_name_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "lepton.yml").write_text(content)
    done = lepton("runs", site=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "lepton.yml" in done.stderr


def test_an_existing_site_is_left_alone(tmp_path: Path) -> None:
    assert lepton("init", str(tmp_path / "site")).returncode == 0
    (tmp_path / "site" / "lepton.yml").write_text("# mine\n")
    done = lepton("init", str(tmp_path / "site"))
    assert done.returncode == 2
    assert (tmp_path / "site" / "lepton.yml").read_text() == "# mine\n"


def test_the_doctor_names_what_is_missing(site: Settings) -> None:
    write_playbook(site.playbooks, "bad", "one", "- name: x", lepton="{risk: high}")
    done = lepton("doctor", "--json", site=site.site, environment={"LEPTON_SANDBOX": str(site.site)})
    assert done.returncode == 1
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert findings["Python"]["good"]
    assert "lepton.risk" in findings["operations"]["hint"]
    assert "SLACK_BOT_TOKEN" in findings["Slack credentials"]["detail"]
    assert "libvirt does not answer" in findings["host here"]["detail"] or "Failed to import" in findings["host here"]["detail"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("lepton run ", ["backup", "container", "deployment", "host", "image", "monitoring", "node", "service"]),
        ("lepton run node re", ["reboot", "rebuild", "release", "rename", "resize", "restore", "revert"]),
        ("lepton run node resize web-1 v", ["vcpus="]),
    ],
)
def test_the_shell_completes_nouns_verbs_and_parameters(typed: str, offered: list[str]) -> None:
    environment = {**os.environ, "_LEPTON_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run([ROOT / ".venv/bin/lepton"], capture_output=True, text=True, check=False, cwd="/", env=environment, timeout=60)
    assert done.stdout.split() == offered


def test_rights_can_be_checked_and_tested(site: Settings) -> None:
    access = {
        "roles": {"web": {"operations": ["node.resize"], "targets": ["node/web-*"], "limits": {"vcpus": {"max": 8}}}},
        "grants": [{"role": "web", "principals": ["slack:T/U1"]}],
        "approvals": [{"name": "big", "above": {"vcpus": {"max": 4}}, "approvers": ["slack:T/U2"]}],
    }
    path = site.site / "lepton.yml"
    path.write_text(path.read_text() + yaml.safe_dump({"access": access}))
    for vcpus, code, said in ((2, 0, "allowed: role web"), (6, 0, "approval: rule big: slack:T/U2"), (9, 1, "vcpus is 9, and at most 8")):
        done = lepton("access", "check", "slack:T/U1", "node", "resize", "web-1", f"vcpus={vcpus}", site=site.site)
        assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    cases = [{"who": "slack:T/U1", "asks": "node resize web-1 vcpus=2", "expect": "allowed"}, {"who": "slack:T/U3", "asks": "node list", "expect": "allowed"}]
    (site.site / "access-tests.yml").write_text(yaml.safe_dump(cases))
    done = lepton("access", "test", site=site.site)
    assert done.returncode == 1
    assert "✗ 2: slack:T/U3 node list: expected allowed , and it is refused: no grant names" in done.stdout
    assert "1 of 2 cases" in done.stdout
    (site.site / "access-tests.yml").write_text("- {who: x}")
    assert lepton("access", "test", site=site.site).returncode == 2
    assert "approvals" in json.loads(lepton("access", "schema").stdout)["properties"]


def test_a_freeze_holds_for_the_command_line_and_the_trail_can_be_verified(site: Settings) -> None:
    probe(site, "['true']")
    assert "everything is frozen by os:" in lepton("freeze", "--until", "1h", "--why", "release", site=site.site).stdout
    refused = lepton("run", "x", "y", site=site.site)
    assert (refused.returncode, "everything is frozen" in refused.stderr) == (2, True)
    assert lepton("freeze", "--until", "soon", site=site.site).returncode == 2
    assert "may change again" in lepton("unfreeze", site=site.site).stdout
    assert lepton("run", "x", "y", site=site.site).returncode == 0
    assert "entries hold" in lepton("audit", "verify", site=site.site).stdout
    exported = [json.loads(line) for line in lepton("audit", "export", site=site.site).stdout.splitlines()]
    assert [entry["what"] for entry in exported][:4] == ["frozen", "refused", "unfrozen", "requested"]
    assert "0 entries removed" in lepton("audit", "prune", "--before", "2020-01-01", site=site.site).stdout


def test_a_line_can_be_simulated_and_nothing_happens(site: Settings, tmp_path: Path) -> None:
    options = "{word: {type: str, required: true}}"
    tasks = f"- name: Write\n  ansible.builtin.copy:\n    content: '{{{{ word }}}}'\n    dest: {tmp_path / 'file'}\n    mode: '0600'"
    write_playbook(site.playbooks, "x", "y", tasks, options=options)
    access = {"roles": {"all": {"operations": ["*"]}}, "grants": [{"role": "all", "principals": ["slack:T/U1"]}]}
    path = site.site / "lepton.yml"
    path.write_text(path.read_text() + yaml.safe_dump({"access": access}))
    done = lepton("simulate", "/lepton x y word=one", "--as", "U1", "--in", "C1", site=site.site)
    assert done.returncode == 0, done.stderr
    assert "allowed: role all" in done.stdout
    assert "would change" in done.stdout
    form = json.loads(lepton("simulate", "/lepton x y", "--as", "U1", "--in", "C1", "--json", site=site.site).stdout)
    assert form["opens_form"]
    assert "word" in [block.get("block_id") for block in form["blocks"]]
    refused = lepton("simulate", "/lepton x y word=one", "--as", "U2", "--in", "C1", site=site.site)
    assert (refused.returncode, "no grant names slack:T/U2" in refused.stdout) == (1, True)
    assert not (tmp_path / "file").exists()
    assert json.loads(lepton("runs", "--json", site=site.site).stdout) == []


def test_an_alert_can_be_simulated_and_nothing_happens(site: Settings, tmp_path: Path) -> None:
    tasks = f"- name: Write\n  ansible.builtin.copy:\n    content: '{{{{ word }}}}'\n    dest: {tmp_path / 'file'}\n    mode: '0600'"
    write_playbook(site.playbooks, "x", "y", tasks, options="{word: {type: str, required: true}}")
    path = site.site / "lepton.yml"
    access = {"roles": {"all": {"operations": ["*"]}}, "grants": [{"role": "all", "principals": ["alert:lepton"]}]}
    rules = [{"name": "words", "matchers": ['alertname="Word"'], "operation": "x.y", "arguments": {"word": {"label": "word"}}}]
    path.write_text(path.read_text() + yaml.safe_dump({"access": access, "alerts": rules}))
    alerts = [
        {"status": "firing", "labels": {"alertname": "Word", "word": "{{ 1+1 }}"}},
        {"status": "firing", "labels": {"alertname": "Word"}},
        {"status": "resolved", "labels": {"alertname": "Word", "word": "x"}},
    ]
    posted = tmp_path / "alert.json"
    posted.write_text(json.dumps({"receiver": "lepton", "alerts": alerts, "truncatedAlerts": 3}))
    done = lepton("simulate", "alert", str(posted), "--json", site=site.site)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [item["verdict"] for item in found] == ["allowed", "refused", "nothing", "nothing"]
    assert found[0]["asked"] == 'Word, rule words: x.y word="{{ 1+1 }}"'
    assert "would change" in str(found[0]["blocks"])
    assert "which the alert does not have" in found[1]["rule"]
    assert "3 more alerts" in found[3]["rule"]
    assert not (tmp_path / "file").exists()
    lepton("freeze", site=site.site)
    assert "everything is frozen" in lepton("simulate", "alert", str(posted), site=site.site).stdout
    posted.write_text(json.dumps({"receiver": "stranger", "alerts": alerts[:1]}))
    lepton("unfreeze", site=site.site)
    assert "no grant names alert:stranger" in lepton("simulate", "alert", str(posted), site=site.site).stdout
    for content in ("[]", "{", '{"alerts": 3}'):
        posted.write_text(content)
        refused = lepton("simulate", "alert", str(posted), site=site.site)
        assert (refused.returncode, "not what Alertmanager posts" in refused.stderr) == (2, True)
    assert lepton("simulate", "alert", "/nowhere", site=site.site).returncode == 2
    assert lepton("simulate", "/lepton x y", site=site.site).returncode == 2
    assert json.loads(lepton("runs", "--json", site=site.site).stdout) == []


def test_what_is_to_be_done_later_needs_a_service(site: Settings) -> None:
    probe(site, "['true']")
    done = lepton("run", "x", "y", "--at", "02:00", site=site.site)
    assert (done.returncode, "no service runs here" in done.stderr) == (2, True)
    assert "is no time" in lepton("run", "x", "y", "--at", "noon", site=site.site).stderr
    assert "one thing for all hosts" in lepton("run", "x", "y", "--canary", site=site.site).stderr


def test_the_schema_of_settings_is_for_files_in_which_everything_may_be_left_out() -> None:
    schema = json.loads(lepton("schema").stdout)
    assert "required" not in schema
    assert {"alerts", "access", "scaling", "slack"} < set(schema["properties"])
    assert "site" not in schema["properties"]

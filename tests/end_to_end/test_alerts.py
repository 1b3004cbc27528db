# SPDX-License-Identifier: Apache-2.0
"""An alert's whole way: Prometheus, two Alertmanagers that know each other, the bot, a run, and one message in Slack that lives."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jinja2
import pytest
import yaml
from tests.conftest import ROOT, eventually, require
from tests.prometheus import running_prometheus
from tests.scaling.test_policy import POLICY
from tests.scaling.test_prometheus import write_history

from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand, free_port
from lepton_ai.slack.alert_views import ACKNOWLEDGE
from lepton_ai.slack.home import START

pytestmark = [pytest.mark.libvirt, pytest.mark.prometheus, pytest.mark.slow]
TEMPLATE = ROOT / "collections/ansible_collections/lepton/cloud/roles/monitoring/templates/alertmanager.yml.j2"
TOKEN = "a-token-of-this-test"
RULE = {"alert": "ProbeHigh", "expr": "process_resident_memory_bytes > 1000", "labels": {"node": "web-1", "severity": "page"}}
SUMMARY = "{{ $labels.job }} is <!channel> {{ $value | humanize }}"


@dataclass
class Monitor:
    """Prometheus with one rule, and the two Alertmanagers that it tells."""

    folder: Path
    prometheus: subprocess.Popen[bytes]
    alertmanagers: list[str]

    def rule(self, **changes: Any) -> None:
        rule = {**RULE, "annotations": {"summary": SUMMARY}, **changes}
        (self.folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "test", "rules": [rule]}]}))
        self.prometheus.send_signal(signal.SIGHUP)


@pytest.fixture(scope="module")
def monitor(workspace_stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    tmp_path = tmp_path_factory.mktemp("monitor")
    require([] if shutil.which("prometheus-alertmanager") else ["prometheus-alertmanager"], "prometheus")
    ports = [free_port() for _ in range(5)]
    (tmp_path / "token").write_text(TOKEN)
    environment = jinja2.Environment()
    environment.filters["to_json"] = json.dumps
    config = environment.from_string(TEMPLATE.read_text()).render(monitoring_lepton_address=f"127.0.0.1:{workspace_stand.bot.port}")
    # As the role writes it, but faster.
    for before, now in (("/etc/prometheus/lepton-alert-token", str(tmp_path / "token")), ("group_wait: 10s", "group_wait: 1s"), (": 1m", ": 2s")):
        assert before in config
        config = config.replace(before, now)
    (tmp_path / "alertmanager.yml").write_text(config)
    (tmp_path / "rules.yml").write_text("groups: []\n")
    alertmanagers = [f"127.0.0.1:{port}" for port in ports[:2]]
    prometheus = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": alertmanagers}]}]},
        "scrape_configs": [{"job_name": "itself", "static_configs": [{"targets": [f"127.0.0.1:{ports[4]}"]}]}],
    }  # fmt: skip
    write_history(tmp_path)
    with contextlib.ExitStack() as ends, (tmp_path / "log").open("wb") as log:

        def start(*command: str) -> subprocess.Popen[bytes]:
            running = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
            ends.callback(running.wait, 30)
            ends.callback(running.terminate)
            return running

        for number in range(2):
            cluster = [f"--cluster.listen-address=127.0.0.1:{ports[2 + number]}", f"--cluster.peer=127.0.0.1:{ports[3 - number]}"]
            files = [f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/alerts-{number}"]
            start("prometheus-alertmanager", *files, f"--web.listen-address={alertmanagers[number]}", *cluster)
        running = ends.enter_context(running_prometheus(tmp_path, prometheus, "--rules.alert.resend-delay=2s", port=ports[4]))
        settings = workspace_stand.site / "lepton.yml"
        before_settings, bot = settings.read_text(), workspace_stand.bot
        wanted = yaml.safe_load(before_settings)
        wanted["access"]["grants"].append({"role": "operator", "principals": ["alert:lepton"]})
        wanted["slack"]["alerts_channel"] = Person(workspace_stand.base_url).channel
        wanted |= {"alertmanager": f"http://{alertmanagers[0]}", "scaling": {"prometheus": running.url}}
        wanted["alerts"] = [{"name": "probe", "matchers": ["alertname=ProbeHigh"], "operation": "probe.echo", "arguments": {"word": {"label": "node"}}}]
        policies = workspace_stand.site / "policies"
        policies.mkdir()
        (policies / "chat.yml").write_text(re.sub("promql: .*", "promql: sum(requests)", POLICY) + "mode: live\n")
        bot.stop()
        settings.write_text(yaml.safe_dump(wanted))
        bot.environment["LEPTON_ALERT_TOKEN"] = TOKEN
        workspace_stand.start_bot()
        try:
            yield Monitor(tmp_path, running.process, alertmanagers)
        finally:
            bot.stop()
            settings.write_text(before_settings)
            shutil.rmtree(policies)
            del bot.environment["LEPTON_ALERT_TOKEN"]
            workspace_stand.start_bot()


def test_an_alert_is_one_message_and_one_run_until_it_is_over(workspace_stand: Stand, monitor: Monitor) -> None:
    stand, ada, mallory = workspace_stand, Person(workspace_stand.base_url), Person(workspace_stand.base_url, "U0MALLORY")
    trace = stand.folder / "trace.echo"
    trace.unlink(missing_ok=True)

    def alerts() -> list[dict[str, Any]]:
        return [message for message in ada.messages() if "ProbeHigh" in message["text"]]

    def shown() -> str:
        return text_of(alerts()[0]) if alerts() else ""

    monitor.rule()
    eventually(lambda: "probe echo web-1 a · succeeded" in shown(), 60)
    assert json.loads(trace.read_text())["word"] == "web-1"
    text = shown()
    assert "rule probe" in text
    assert "itself is &lt;!channel&gt;" in str(alerts()[0]["blocks"])
    elements = [element["action_id"] for block in alerts()[0]["blocks"] if block["type"] == "actions" for element in block["elements"]]
    assert [elements[0], elements[-1]] == [ACKNOWLEDGE, START]
    # What it is about is drawn below it.
    assert eventually(lambda: [file for message in ada.messages() if message.get("thread_ts") == alerts()[0]["ts"] for file in message.get("files", ())], 20)

    mallory.press(alerts()[0], ACKNOWLEDGE)
    eventually(lambda: any("may not answer this alert" in message["text"] for message in mallory.messages()), 20)
    ada.press(alerts()[0], ACKNOWLEDGE)
    eventually(lambda: "somebody sees to it" in shown(), 20)
    ada.press(alerts()[0], "alert_silence_3600")
    eventually(lambda: "silenced until" in shown(), 20)
    for address in monitor.alertmanagers:  # which tell each other
        (silence,) = eventually(lambda address=address: httpx.get(f"http://{address}/api/v2/silences").json(), 20)
        assert {matcher["name"]: matcher["value"] for matcher in silence["matchers"]}["node"] == "web-1"
        assert silence["createdBy"] == f"slack:T0SANDBOX/{ada.user}"
    httpx.delete(f"http://{monitor.alertmanagers[0]}/api/v2/silence/{silence['id']}").raise_for_status()

    monitor.rule(expr="process_resident_memory_bytes < 0")
    eventually(lambda: "· resolved" in shown(), 60)
    assert len(alerts()) == 1
    runs = subprocess.run(
        [ROOT / ".venv/bin/lepton", "runs", "--json", "--site", str(stand.site)], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert len([run for run in json.loads(runs) if run["principal"] == "alert:lepton"]) == 1
    # It comes back: another life, another message, another run.
    trace.unlink()
    monitor.rule()
    eventually(lambda: len(alerts()) == 2 and trace.exists(), 60)


def test_a_policy_is_tried_on_the_past_from_slack(workspace_stand: Stand, monitor: Monitor) -> None:
    ada, mallory = Person(workspace_stand.base_url), Person(workspace_stand.base_url, "U0MALLORY")
    ada.say("/lepton scaling backtest chat 2d")
    text = text_of(ada.wait(lambda text: "too busy" in text, 60))
    assert "chat: 2.0 days" in text
    assert "HPA 70%" in text
    assert eventually(lambda: [file for message in ada.answers() for file in message.get("files", ()) if file["name"] == "backtest.png"], 20)
    ada.say("/lepton scaling backtest chat 1h")
    assert ada.wait(lambda text: "a back-test needs a day" in text)
    ada.say("/lepton scaling pin chat 3 2h because of a launch")
    assert "chat is pinned to 3" in text_of(ada.wait(lambda text: "pinned" in text))
    mallory.say("/lepton scaling unpin chat")
    assert mallory.wait(lambda text: "may not service.show service/chat" in text)
    ada.say("/lepton scaling unpin chat")
    assert ada.wait(lambda text: "its policy's again" in text)

# SPDX-License-Identifier: Apache-2.0
"""What the roles make, run for real: Prometheus, Alertmanager, the node and libvirt exporters and HAProxy as they are configured.

cAdvisor and NVIDIA's DCGM exporter cannot run here; recorded answers stand in for them. Grafana is no package of this distribution, so its
dashboards are checked against its schema, and each of their questions is asked of the real Prometheus.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from tests.collection.test_roles import changed, inside, inside_command
from tests.conftest import ROOT, eventually, require
from tests.prometheus import answers
from tests.scaling.test_decision import decided

from lepton_ai.metrics import Metrics
from lepton_ai.runs.model import Run, State
from lepton_ai.runs.progress import Progress
from lepton_ai.sandbox.stand import free_port
from lepton_ai.web.app import web_app
from lepton_ai.web.targets import target_routes

pytestmark = [pytest.mark.prometheus, pytest.mark.haproxy, pytest.mark.libvirt]
ROLE = ROOT / "collections/ansible_collections/lepton/cloud/roles/monitoring"
RULES, DASHBOARDS = sorted((ROLE / "files/rules").glob("*.yml")), sorted((ROLE / "files/dashboards").glob("*.json"))
HERE = Path(__file__).parent
TOKEN = "a-token-that-nobody-sees"
PROGRAMS = ("prometheus", "promtool", "amtool", "prometheus-alertmanager", "prometheus-node-exporter", "prometheus-libvirt-exporter")


@dataclass(frozen=True)
class Stack:
    """A monitor that runs, and where its files are."""

    folder: Path
    prometheus: str
    alertmanager: str
    again: int  # what a second run of the roles changed

    def file(self, path: str) -> Path:
        """Return a file that is at `path` for those inside."""
        top, _, rest = path.strip("/").partition("/")
        second, _, rest = rest.partition("/")
        return self.folder / f"{top}-{second}" / rest

    def ask(self, promql: str) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.prometheus}/api/v1/query", data={"query": promql}).json()
        assert answer["status"] == "success", f"{promql}: {answer}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


class _Recorded(http.server.BaseHTTPRequestHandler):
    """Answers /metrics with a file."""

    file: Path

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(self.file.read_bytes())

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Have the roles configure everything and start it as Debian's units would, with a service at HAProxy and a node of libvirt's test driver."""
    require([name for name in PROGRAMS if not shutil.which(name)], "prometheus")
    folder = tmp_path_factory.mktemp("monitor")
    names = ("node", "libvirt", "containers", "haproxy", "gpu", "prometheus", "alertmanager", "lepton", "cluster")
    ports = {name: free_port() for name in names}
    variables = {
        "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "lepton_metrics": {"address": "127.0.0.1"},
        "lepton_host": {"uri": "test:///default"}, "exporters_manage_service": False, "exporters_node_port": ports["node"],
        "exporters_libvirt_port": ports["libvirt"], "load_balancer_manage_service": False, "load_balancer_maxconn": 2000,
        "load_balancer_metrics_address": f"127.0.0.1:{ports['haproxy']}", "monitoring_manage_service": False,
        "monitoring_alert_token": TOKEN, "monitoring_grafana_password": TOKEN,
        "monitoring_ports": {name: ports[name] for name in names[:5]}, "monitoring_prometheus_port": ports["prometheus"],
        "monitoring_alertmanager_port": ports["alertmanager"], "monitoring_cluster_port": ports["cluster"],
        "monitoring_lepton_address": f"127.0.0.1:{ports['lepton']}",
        "monitoring_scrape_interval": "1s",
    }  # fmt: skip
    groups = {name: {"hosts": {"here": {}}} for name in ("hypervisors", "container_hosts", "load_balancers", "monitors", "gpu_hosts")}
    groups["monitors"]["hosts"]["other"] = {"lepton_metrics": {"address": "127.0.0.2"}}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"here": variables}}, **groups}))
    roles = [f"lepton.cloud.{name}" for name in ("load_balancer", "exporters", "monitoring")]
    play = [{"hosts": "here", "gather_facts": True, "gather_subset": ["min", "pkg_mgr", "service_mgr"], "roles": roles}]
    (folder / "play.yml").write_text(json.dumps(play))
    apply = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(folder / "hosts.yml"), "--skip-tags", "install", str(folder / "play.yml")]
    first = inside(folder, *apply)
    assert changed(first) > 0
    assert TOKEN not in first.stdout
    again = changed(inside(folder, *apply))
    listen = free_port()
    backend = f"backend chat\n  server chat-1 127.0.0.1:{ports['containers']} check\n"
    proxies = f"frontend chat\n  bind 127.0.0.1:{listen}\n  default_backend chat\n{backend}"
    (folder / "etc-haproxy/lepton.d/chat.cfg").write_text(proxies)
    with contextlib.ExitStack() as ends:
        for name in ("containers", "gpu"):
            handler = type("Handler", (_Recorded,), {"file": HERE / f"{name}.txt"})
            recorded = http.server.ThreadingHTTPServer(("127.0.0.1", ports[name]), handler)
            threading.Thread(target=recorded.serve_forever, daemon=True).start()
            ends.callback(recorded.shutdown)
        server = {"name": "chat-1", "address": "127.0.0.1", "port": ports["containers"]}
        told = {"lb": {"services": [{"name": "chat", "servers": [server]}]}}
        bot = uvicorn.Server(uvicorn.Config(web_app(_lepton().registry, dict, None, target_routes(lambda: told)), port=ports["lepton"], log_level="warning"))
        serving = threading.Thread(target=bot.run, daemon=True)
        serving.start()
        eventually(lambda: bot.started)
        ends.callback(serving.join, 10)
        ends.callback(setattr, bot, "should_exit", True)
        programs = [f". /etc/default/{name}; exec {name} $ARGS" for name in ("prometheus-node-exporter", "prometheus-libvirt-exporter")]
        # What it sends before Alertmanager listens is lost, and by default it says it again after a minute.
        soon, files = "--rules.alert.resend-delay=2s", f"--config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path={folder}/data"
        programs.append(f". /etc/default/prometheus; exec prometheus {soon} {files} $ARGS")
        store = f"--config.file=/etc/prometheus/alertmanager.yml --storage.path={folder}/alerts"
        programs.append(f". /etc/default/prometheus-alertmanager; exec prometheus-alertmanager {store} $ARGS")
        listening = f"--web.listen-address=127.0.0.2:{ports['alertmanager']} --cluster.listen-address=127.0.0.2:{ports['cluster']}"
        programs.append(f"exec prometheus-alertmanager --config.file=/etc/prometheus/alertmanager.yml --storage.path={folder}/other {listening}")
        programs.append("exec haproxy -W -f /etc/haproxy/haproxy.cfg -f /etc/haproxy/lepton.d -S /run/haproxy-master.sock")
        for number, program in enumerate(programs):
            with (folder / f"log-{number}").open("w") as log:
                running = subprocess.Popen(inside_command(folder, "sh", "-c", program), stdout=log, stderr=log)
            ends.callback(running.wait, 30)
            ends.callback(running.terminate)
        ready = [f"http://127.0.0.1:{port}" for port in (f"{listen}/", f"{ports['prometheus']}/-/ready", f"{ports['alertmanager']}/-/ready")]
        eventually(lambda: all(map(answers, ready)))
        yield Stack(folder, f"http://127.0.0.1:{ports['prometheus']}", f"http://127.0.0.1:{ports['alertmanager']}", again)


def _lepton() -> Metrics:
    """Return what Lepton tells after a run, a decision and an alert."""
    metrics = Metrics()
    run = Run("r", "service.scale", {}, "policy:chat", False, State.SUCCEEDED, "change", "", {}, 0.0, 1.0, 3.0, {}, "", "", {}, True)
    metrics.run_changed(run, Progress())
    metrics.decided(decided())
    metrics.alert("asked")
    return metrics


def test_everything_is_watched_and_a_second_run_changes_nothing(stack: Stack) -> None:
    assert stack.again == 0

    def up() -> bool:
        jobs = {series["metric"]["job"] for series in stack.ask('up{host!="other"} == 1')}
        return jobs == {"prometheus", "lepton", "node", "libvirt", "containers", "haproxy", "gpu", "models"}

    eventually(up)
    # The other monitor does not run, and is asked at a moment of its own.
    eventually(lambda: {series["metric"].get("host") for series in stack.ask('up{job!~"lepton|models"}')} == {"here", "other"})


def test_only_those_who_must_can_read_the_token(stack: Stack) -> None:
    token = stack.file("/etc/prometheus/lepton-alert-token")
    assert token.read_text() == TOKEN
    assert token.stat().st_mode & 0o777 == 0o640
    assert TOKEN not in stack.file("/etc/prometheus/alertmanager.yml").read_text()


def test_grafana_listens_where_the_others_do_and_not_with_the_password_that_everybody_knows(stack: Stack) -> None:
    environment = stack.file("/etc/grafana/lepton.env")
    assert environment.read_text() == f"GF_SERVER_HTTP_ADDR=127.0.0.1\nGF_SECURITY_ADMIN_PASSWORD={TOKEN}\n"
    assert environment.stat().st_mode & 0o777 == 0o600
    assert (stack.folder / "etc-systemd-system/grafana-server.service.d/lepton.conf").exists()


def test_alerts_reach_alertmanager(stack: Stack) -> None:
    def watchdog() -> bool:
        return any(alert["labels"]["alertname"] == "Watchdog" for alert in httpx.get(f"{stack.alertmanager}/api/v2/alerts").json())

    eventually(watchdog, 60)


def test_the_alertmanagers_of_two_monitors_know_each_other(stack: Stack) -> None:
    def peers() -> int:
        return len(httpx.get(f"{stack.alertmanager}/api/v2/status").json()["cluster"].get("peers", ()))

    eventually(lambda: peers() == 2, 30)


def test_what_is_called_otherwise_elsewhere_has_our_names(stack: Stack) -> None:
    assert eventually(lambda: stack.ask('libvirt_domain_info_virtual_cpus{node="test", host="here"}'))
    assert eventually(lambda: stack.ask('haproxy_server_status{service="chat", replica="chat-1"}'))
    assert eventually(lambda: stack.ask('container_memory_working_set_bytes{container="chat-1", service="chat"}'))
    assert stack.ask('container_memory_working_set_bytes{container="", job="containers"}') == []
    assert stack.ask('up{job="models", service="chat", replica="chat-1"} == 1')


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: str(path.stem))
def test_every_question_of_a_dashboard_has_an_answer(stack: Stack, path: Path) -> None:
    dashboard = json.loads(path.read_text())
    questions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert questions
    for variable in dashboard.get("templating", {}).get("list", ()):
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        assert found is not None, variable["query"]
        questions.append(f"{found[1]} * on ({found[2]}) group_left () (count by ({found[2]}) ({found[1]}))")
    for question in questions:
        asked = re.sub(r"\$(host|service)\b", ".*", question.replace("$__rate_interval", "1m"))
        assert "$" not in asked
        assert eventually(lambda asked=asked: stack.ask(asked), 30), asked


def test_a_host_that_could_not_be_asked_is_refused(tmp_path: Path) -> None:
    variables: dict[str, Any] = {
        "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "monitoring_alert_token": "", "monitoring_grafana": False,
    }  # fmt: skip
    hosts = {"all": {"hosts": {"here": variables, "far": {}}}, "hypervisors": {"hosts": {"far": {}}}, "monitors": {"hosts": {"here": {}}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(hosts))
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "monitors", "gather_facts": False, "roles": ["lepton.cloud.monitoring"]}]))

    def refused() -> str:
        done = inside(tmp_path, str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml"))
        assert done.returncode != 0
        return " ".join(done.stdout.split())

    assert "monitoring_alert_token must be what the bot has" in refused()
    variables["monitoring_alert_token"] = "t"
    (tmp_path / "hosts.yml").write_text(json.dumps(hosts))
    assert "far cannot be asked by here: set lepton_metrics.address of each" in refused()
    assert not list((tmp_path / "etc-prometheus").iterdir())


def test_ipv6_addresses_stand_in_brackets_before_their_ports(tmp_path: Path) -> None:
    def host(address: str) -> dict[str, Any]:
        return {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "lepton_metrics": {"address": address}}

    variables = {
        "monitoring_alert_token": "t", "monitoring_grafana": False, "monitoring_manage_service": False, "exporters_manage_service": False,
        "load_balancer_manage_service": False,
    }  # fmt: skip
    hosts = {"here": host("fd00::7"), "other": host("fd00::8")}
    groups = {name: {"hosts": hosts} for name in ("load_balancers", "monitors")}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}, **groups}))
    roles = [f"lepton.cloud.{name}" for name in ("load_balancer", "exporters", "monitoring")]
    (tmp_path / "play.yml").write_text(
        json.dumps([{"hosts": "here", "gather_facts": True, "gather_subset": ["min", "pkg_mgr", "service_mgr"], "roles": roles}])
    )
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(tmp_path / "hosts.yml"), "--skip-tags", "install", str(tmp_path / "play.yml")]
    assert changed(inside(tmp_path, *command)) > 0
    for name in ("prometheus", "prometheus-node-exporter", "prometheus-alertmanager"):
        assert "--web.listen-address=[fd00::7]:" in (tmp_path / "etc-default" / name).read_text()
    assert "--cluster.peer=[fd00::8]:9094" in (tmp_path / "etc-default/prometheus-alertmanager").read_text()
    assert "bind [fd00::7]:8405" in (tmp_path / "etc-haproxy/haproxy.cfg").read_text()
    written = (tmp_path / "etc-prometheus/prometheus.yml").read_text()
    assert '["[fd00::7]:9093", "[fd00::8]:9093"]' in written
    assert "[fd00::8]:9100" in (tmp_path / "etc-prometheus/lepton-targets/node.json").read_text()
    checked = inside(tmp_path, "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", RULES, ids=lambda path: str(path.stem))
def test_rules_say_what_their_examples_expect(tmp_path: Path, path: Path) -> None:
    examples = HERE / "rules" / f"{path.stem}.test.yml"
    shutil.copy(path, tmp_path)
    shutil.copy(examples, tmp_path)
    done = subprocess.run(["promtool", "test", "rules", examples.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    alerts = {rule["alert"] for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"] if "alert" in rule}
    fired = {each["alertname"] for test in yaml.safe_load(examples.read_text())["tests"] for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert fired == alerts


def test_dashboards_are_as_the_script_writes_them(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools/dashboards.py"), str(tmp_path)], check=True)
    for path in DASHBOARDS:
        assert path.read_text() == (tmp_path / path.name).read_text(), f"{path.name}: run make docs"
    assert len(DASHBOARDS) == len(list(tmp_path.iterdir()))


def test_dashboards_are_as_grafanas_schema_has_them() -> None:
    require([] if shutil.which("go") else ["go"], "prometheus")
    done = subprocess.run(["go", "run", ".", *map(str, DASHBOARDS)], cwd=HERE / "schema", capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

# SPDX-License-Identifier: Apache-2.0
"""Services on real containers behind a real HAProxy: clients under a steady load lose nothing, whatever is done, and each failure takes
back only its own.

What is said is compared with the engine, with HAProxy's own tables and with what an independent client (wrk) counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.conftest import ROOT, eventually
from tests.end_to_end.test_people import virsh
from tests.load import load
from tests.warm import ansible

from lepton_ai.containers import Container
from lepton_ai.errors import LeptonError
from lepton_ai.extension import Extension
from lepton_ai.resources import CPUResource, MemoryResource, VirtualNode
from lepton_ai.sandbox.balancer import start_balancer, stop_balancer
from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand, free_port

pytestmark = [pytest.mark.docker, pytest.mark.haproxy, pytest.mark.libvirt, pytest.mark.slow]


def reload_balancer(folder: Path) -> None:
    """Have the HAProxy of a folder read its files again. While it does so already, its master listens to nobody."""
    command = ["sh", "-c", f"echo reload | nc -NU {folder}/master.sock"]
    eventually(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, 15)


class Site:
    """The stand with the playbooks on one side, and the systems' own tools on the other."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.inventories: list[str] = []  # beside the sandbox's
        self.url = f"http://127.0.0.1:{stand.service_port}/"
        # With the bot's socket, so that a plain run and what the bot does by itself wait for each other.
        self.environment = {
            "LEPTON_SANDBOX": str(stand.folder), "LEPTON_SANDBOX_PORT": str(stand.service_port), "LEPTON_SOCKET": str(stand.folder / "state" / "lepton.sock"),
            "ANSIBLE_NOCOLOR": "1",
        }  # fmt: skip

    def playbook(self, verb: str, *words: str, noun: str = "service", **arguments: Any) -> subprocess.CompletedProcess[str]:
        extra = [word for inventory in self.inventories for word in ("-i", inventory)] + [
            word for name, value in arguments.items() for word in ("-e", json.dumps({name: value}))
        ]
        command = ["-i", ROOT / "inventories/sandbox", ROOT / f"playbooks/{noun}/{verb}.yml", *extra, *words]
        return ansible("ansible-playbook", command, cwd=ROOT, env={**os.environ, **self.environment}, timeout=240)

    def do(self, verb: str, **arguments: Any) -> str:
        """Do it, after whatever else holds the service's lock."""

        def done() -> subprocess.CompletedProcess[str] | None:
            answered = self.playbook(verb, service="chat", **arguments)
            return None if "service/chat is locked by" in answered.stdout else answered

        answered: subprocess.CompletedProcess[str] = eventually(done, 60)
        assert answered.returncode == 0, answered.stdout
        return answered.stdout

    def docker(self, *words: str) -> str:
        assert self.stand.engine is not None
        return subprocess.run(["docker", "--host", self.stand.engine.address, *words], capture_output=True, text=True, check=False).stdout.strip()

    def containers(self, *, running: bool = True) -> list[str]:
        return sorted(self.docker("ps", *([] if running else ["--all"]), "--format", "{{.Names}} {{.Image}}").splitlines())

    def rows(self, service: str) -> list[dict[str, str]]:
        """Return the servers of a service in HAProxy's own table."""
        assert self.stand.balancer is not None
        script = f"echo 'show stat' | nc -NU {self.stand.balancer.folder}/admin.sock"
        lines = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
        header = lines[0].lstrip("# ").split(",")
        return [dict(zip(header, line.split(","), strict=False)) for line in lines[1:] if line.startswith(f"{service},{service}-")]

    def servers(self) -> dict[str, tuple[str, str]]:
        """Return address and status by server of `chat`."""
        return {row["svname"]: (row["addr"], row["status"]) for row in self.rows("chat")}

    def file(self) -> str:
        assert self.stand.balancer is not None
        path = self.stand.balancer.folder / "services" / "chat.cfg"
        return path.read_text() if path.exists() else ""

    def everything(self) -> tuple[list[str], dict[str, tuple[str, str]], str]:
        return self.containers(running=False), self.servers(), self.file()

    def clear(self) -> None:
        """Remove whatever a test has left of services, past Lepton."""
        assert self.stand.balancer is not None
        for name in self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", "--volumes", name)
        folder = self.stand.balancer.folder
        for file in (folder / "services").glob("*.cfg"):
            file.unlink()
        (folder / "state").write_text("")
        reload_balancer(folder)
        eventually(lambda: not self.rows("chat"))

    def versions(self) -> set[str]:
        return {httpx.get(self.url).json()["model_version"] for _ in range(20)}


@pytest.fixture
def site(workspace_stand: Stand) -> Iterator[Site]:
    """The site with a service `chat` of one replica."""
    site = Site(workspace_stand)
    site.do("create")
    yield site
    site.clear()


def test_planned_made_and_deleted(workspace_stand: Stand) -> None:
    site = Site(workspace_stand)
    before = site.everything()
    planned = site.playbook("create", "--check", service="chat")
    assert planned.returncode == 0, planned.stdout
    assert site.everything() == before == ([], {}, "")
    site.do("create")
    assert site.versions() == {"1"}
    site.do("delete")
    assert site.everything() == ([], {}, "")


def test_scale_up_and_down_under_load_drops_nothing(site: Site) -> None:
    with load(site.url) as counted:
        site.do("scale", replicas=4)
        assert len(site.containers()) == 4
        assert set(site.servers()) == {name.split()[0] for name in site.containers()}
        assert all(status == "UP" for _address, status in site.servers().values())
        before = site.everything()
        site.do("scale", replicas=4)
        assert site.everything() == before
        site.do("scale", replicas="-3")
        assert len(site.containers(running=False)) == len(site.servers()) == 1
    assert counted.requests > 1000
    assert counted.dropped == 0, counted


def test_rolling_to_a_new_image_and_to_broken_ones_drops_nothing(site: Site) -> None:
    site.do("scale", replicas=2)
    with load(site.url) as counted:
        site.do("update", image="model:2")
        assert [name.split()[1] for name in site.containers(running=False)] == ["model:2", "model:2"]
        assert site.versions() == {"2"}
        before = site.everything()
        for image, reason in (("model:broken", "again and again"), ("nowhere/model:1", "could not be pulled")):
            failed = site.playbook("update", service="chat", image=image)
            assert failed.returncode != 0
            assert reason in failed.stdout
            assert "all of it was taken back" in failed.stdout
            assert site.everything() == before
        assert site.versions() == {"2"}
    assert counted.requests > 1000
    assert counted.dropped == 0, counted


def test_a_version_that_answers_errors_is_taken_back(site: Site) -> None:
    """It must answer clients to be judged, so some of them see its errors; it is drained as soon as they are too many."""
    site.do("scale", replicas=2)
    before = site.everything()
    with load(site.url) as counted:
        failed = site.playbook("update", service="chat", image="model:flaky")
        assert "does not serve well, and gets no more requests" in failed.stdout
        assert site.everything() == before
    assert 0 < counted.bad_status < counted.requests / 20
    assert counted.socket_errors == 0


def test_a_killed_replica_costs_at_most_what_was_in_flight_and_is_replaced_with_nobody_awake(site: Site) -> None:
    site.do("scale", replicas=2)
    victim = min(site.servers())
    with load(site.url) as counted:
        time.sleep(0.5)  # the load is to be under way
        site.docker("kill", victim)
        eventually(lambda: victim not in site.servers() and [status for _address, status in site.servers().values()] == ["UP", "UP"], 90)
    assert counted.dropped <= 4, counted  # connections of the load: no more than that can be in flight
    eventually(lambda: site.containers(running=False) == site.containers() and len(site.containers()) == 2)
    asked = subprocess.run(
        [ROOT / ".venv/bin/lepton", "runs", "--json"], capture_output=True, text=True, check=True, env={**os.environ, "LEPTON_SITE": str(site.stand.site)}
    )
    mended = next(run for run in json.loads(asked.stdout) if run["operation"] == "service.reconcile")
    assert mended["principal"] == "schedule:reconcile"
    before = site.everything()
    site.do("reconcile")
    assert site.everything() == before


@pytest.fixture
def theirs(workspace_stand: Stand) -> Iterator[tuple[Site, int]]:
    """What a team has before Lepton: a container of its own making, and a proxy for it in HAProxy's own configuration."""
    site, port, inside = Site(workspace_stand), free_port(), free_port()
    assert workspace_stand.balancer is not None
    config = workspace_stand.balancer.folder / "haproxy.cfg"
    before = config.read_text()

    def reload() -> None:
        script = f"echo reload | nc -NU {config.parent}/master.sock"
        subprocess.run(["sh", "-c", script], check=True, capture_output=True)

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/").is_success
        except httpx.HTTPError:
            return False

    site.docker("run", "--detach", "--name", "theirs", "--publish", f"127.0.0.1:{inside}:8080", "model:1")
    config.write_text(f"{before}\nfrontend www\n  bind 127.0.0.1:{port}\n  default_backend old\n\nbackend old\n  server one 127.0.0.1:{inside}\n")
    reload()
    eventually(answers)
    yield site, port
    if site.rows("books"):
        eventually(lambda: site.playbook("delete", service="books").returncode == 0, 60)
    site.docker("rm", "--force", "theirs")
    config.write_text(before)
    reload()
    eventually(lambda: not answers())


def test_a_service_takes_the_place_of_what_was_there_without_a_dropped_request(theirs: tuple[Site, int]) -> None:
    site, port = theirs
    assert site.stand.balancer is not None
    config = site.stand.balancer.folder / "haproxy.cfg"
    config.chmod(0o640)
    before = config.read_text()
    chat = {"image": "model:2", "port": 8080, "listen_port": port, "memory": "128MiB", "max_replicas": 3, "drain_seconds": 20, "start_seconds": 20}

    def ask(**changes: Any) -> subprocess.CompletedProcess[str]:
        return site.playbook("adopt", service="books", lepton_services={"books": {**chat, **changes}})

    with load(f"http://127.0.0.1:{port}/") as counted:
        planned = site.playbook("adopt", "--check", service="books", lepton_services={"books": chat})
        assert planned.returncode == 0, planned.stdout
        assert config.read_text() == before
        failed = ask(image="model:broken")
        assert failed.returncode != 0
        assert "all of it was taken back" in failed.stdout, failed.stdout
        assert config.read_text() == before
        assert not site.rows("books")
        done = ask()
        assert done.returncode == 0, done.stdout
        assert [row["svname"] for row in site.rows("books")] == ["books-1"]
        versions = {httpx.get(f"http://127.0.0.1:{port}/").json()["model_version"] for _ in range(10)}
        assert versions == {"2"}
    assert counted.requests > 500
    assert counted.dropped == 0, counted
    assert "# replaced by the service books of Lepton: frontend www" in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o640
    assert "theirs model:1" in site.containers()  # drained, and nobody's to stop
    again = ask()
    assert "use service create" in again.stdout, again.stdout


def test_replicas_find_the_data_that_their_service_names(site: Site, tmp_path: Path) -> None:
    (tmp_path / "index.txt").write_text("one index for all of them")
    digest = "sha256:" + hashlib.sha256((tmp_path / "index.txt").read_bytes()).hexdigest()
    data = [{"name": "index", "target": "/data", "url": f"file://{tmp_path}/index.txt", "digest": digest}]
    declared = {"books": {"image": "model:1", "port": 8080, "listen_port": free_port(), "max_replicas": 2, "data": data}}
    refused = site.playbook("create", service="books", lepton_services={"books": {**declared["books"], "data": [{**data[0], "digest": digest[:-1] + "x"}]}})
    assert "data: index: digest" in refused.stdout
    made = site.playbook("create", service="books", replicas=2, lepton_services=declared)
    assert made.returncode == 0, made.stdout
    script = "print(open('/data/index.txt').read())"
    try:
        for name in ("books-1", "books-2"):
            assert site.docker("exec", name, "python3", "-c", script) == "one index for all of them"
        mounts = json.loads(site.docker("container", "inspect", "books-1", "books-2"))
        assert len({mount["Source"] for each in mounts for mount in each["Mounts"] if mount["Destination"] == "/data"}) == 1
        assert not [mount for each in mounts for mount in each["Mounts"] if mount["RW"] and mount["Destination"] == "/data"]
    finally:
        eventually(lambda: site.playbook("delete", service="books").returncode == 0, 60)
    # A copy that is not what was meant: no replica starts, and nothing of the service is left.
    wrong = {"books": {**declared["books"], "data": [{**data[0], "digest": "sha256:" + "0" * 64}]}}
    failed = site.playbook("create", service="books", lepton_services=wrong)
    assert "nothing of it was kept" in failed.stdout, failed.stdout
    assert not [name for name in site.containers(running=False) if name.startswith("books")]
    assert not site.rows("books")


def test_a_replica_on_a_host_that_does_not_answer_is_not_started_twice(site: Site) -> None:
    site.do("scale", replicas=2)
    before = site.everything()
    # Its engine cannot be asked, so its replicas may live: their number is as it is wanted, and nothing is done.
    done = site.playbook("reconcile", service="chat", lepton_engine={"engine": "docker", "engine_address": "unix:///nowhere.sock"})
    assert done.returncode == 0, done.stdout
    assert site.everything() == before
    refused = site.playbook("scale", service="chat", replicas=1, lepton_engine={"engine": "docker", "engine_address": "unix:///nowhere.sock"})
    assert "chat is not scaled down: here did not answer" in refused.stdout
    assert site.everything() == before


def test_bad_input_changes_nothing(site: Site) -> None:
    before = site.everything()
    for verb, arguments, reason in (
        ("scale", {"replicas": 9}, "may have 1 to 6 replicas, not 9"),
        ("scale", {"replicas": {"__ansible_unsafe": "{{ 1 + 1 }}"}}, "expected a number such as 4"),
        ("update", {"image": "a b"}, "is not an image"),
        ("create", {}, "there is a service chat already"),
    ):
        failed = site.playbook(verb, service="chat", **arguments)
        assert failed.returncode != 0
        assert reason in failed.stdout
        assert site.everything() == before


def test_from_slack_planned_done_and_under_load(site: Site) -> None:
    """The plan shows what is then done, and what would take it back; clients lose nothing meanwhile."""
    ada = Person(site.stand.base_url)
    before = site.everything()
    with load(site.url) as counted:
        ada.say("/lepton plan service scale chat replicas=3")
        plan = ada.wait(lambda text: "*would change*" in text)
        assert "here: keep that chat is wanted so" in text_of(plan)
        assert "start chat-2 from model:1" in text_of(plan)
        assert "`replicas` 1 → *3*" in text_of(plan)
        assert "`chat-2 state` absent → *running*" in text_of(plan)
        assert "*And only where one of them does not succeed, to take back what belongs to it:*\nhere: drain chat-2 and take it out" in text_of(plan)
        assert site.everything() == before
        ada.say("/lepton service scale chat replicas=3")
        ada.wait(lambda text: "*changed*" in text and "`chat-3 state` absent → *ready*" in text)
        assert len(site.servers()) == 3
        ada.say("/lepton service show chat")
        shown = text_of(ada.wait(lambda text: "REPLICAS" in text))
        assert "3 of 3" in shown
        assert all(name in shown for name in site.servers())
    assert counted.dropped == 0, counted
    ada.say("/lepton service scale chat replicas=9")
    ada.wait(lambda text: "may have 1 to 6 replicas, not 9" in text)
    ada.say("/lepton container list")
    ada.wait(lambda text: "CONTAINER" in text and "model:1" in text)
    ada.home(lambda text: "3 of 3" in text)


def test_two_scales_at_once_wait_for_each_other(site: Site) -> None:
    ada = Person(site.stand.base_url)
    ada.say("/lepton service scale chat replicas=+1")
    ada.say("/lepton service scale chat replicas=+1")
    eventually(lambda: len(site.servers()) == 3, 60)
    eventually(lambda: '"replicas":3' in site.file())


def test_a_load_balancer_that_was_away_is_brought_up_to_date(site: Site, tmp_path: Path) -> None:
    """Two of them: clients are served by either, one that dies stops nothing that adds replicas, and what it missed is made up for."""
    second = start_balancer(tmp_path)
    folder = second.folder
    inventory = {
        "load_balancers": {
            "hosts": {
                "lb2": {
                    "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
                    "lepton_balancer": {
                        "socket_address": f"{folder}/admin.sock", "master_socket": f"{folder}/master.sock", "config": f"{folder}/haproxy.cfg",
                        "services_dir": f"{folder}/services", "state_file": f"{folder}/state", "listen_address": "127.0.0.2",
                    },
                }
            }
        }
    }  # fmt: skip
    (tmp_path / "lb2.yml").write_text(yaml.safe_dump(inventory))
    site.inventories = [str(tmp_path / "lb2.yml")]
    url = f"http://127.0.0.2:{site.stand.service_port}/"
    try:
        site.do("reconcile")  # it has never heard of the service
        assert httpx.get(url).status_code == 200
        stop_balancer(tmp_path)
        eventually(lambda: not answers(url))
        with load(site.url) as counted:
            site.do("scale", replicas=2)
            refused = site.playbook("scale", service="chat", replicas=1)
            assert "chat is not scaled down: lb2 did not answer" in refused.stdout
        assert counted.dropped == 0, counted
        assert len(site.servers()) == 2
        start_balancer(tmp_path)
        assert "chat-2 127.0.0.1" not in (folder / "services" / "chat.cfg").read_text()
        site.do("reconcile")
        written = (folder / "services" / "chat.cfg").read_text()
        assert all(f"server {name} " in written for name in site.servers())
        assert httpx.get(url).status_code == 200
        before = (site.everything(), written)
        site.do("reconcile")
        assert (site.everything(), (folder / "services" / "chat.cfg").read_text()) == before
        site.do("delete")
        assert not (folder / "services" / "chat.cfg").exists()
    finally:
        site.inventories = []
        stop_balancer(tmp_path)


def test_a_container_from_python(workspace_stand: Stand) -> None:
    port, site = free_port(), Site(workspace_stand)
    container = Container("model:1", "from-python", ports=[f"{port}:8080"], health_path="/v2/health/ready", health_port=8080, site=workspace_stand.site)
    container.start()
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/").json()["model_version"] == "1"
        container.stop()
        assert site.containers() == []
        assert site.containers(running=False) == ["from-python model:1"]
        with pytest.raises(LeptonError, match="is not an image"):
            Container("not an image", "from-python", site=workspace_stand.site).start()
    finally:
        site.docker("rm", "--force", "from-python")


def test_services_and_nodes_scale_from_python(site: Site) -> None:
    extension = Extension(site=site.stand.site)
    extension.scale("chat")
    assert len(site.servers()) == 2
    extension.balance("chat-1")  # a service by one of its replicas
    node = VirtualNode(CPUResource(1), MemoryResource(0.0625), name="again-9", site=site.stand.site)
    with pytest.raises(LeptonError, match="again-9 belongs to no service"):
        extension.scale(node)
    node.release_resources()
    extension.scale(node)
    assert virsh(site.stand, "domstate", "again-9") == "running"
    node.release_resources()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""Images from host to host without a registry, and to a registry: two real engines, a real sshd, a real registry that wants a password."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.conftest import ROOT, ContainerHost, SshServer, eventually, require

from lepton_ai.sandbox.engine import Engine, start_engine, stop_engine
from lepton_ai.sandbox.images import load_base
from lepton_ai.sandbox.stand import free_port

pytestmark = [pytest.mark.docker, pytest.mark.ssh, pytest.mark.slow]
IMAGE = "model:1"


@dataclass
class Hosts:
    """Two container hosts: `near` on this machine, `far` by ssh, each with an engine of its own."""

    near: ContainerHost
    far: ContainerHost
    inventory: Path

    def playbook(self, verb: str, *words: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
        extra = [word for name, value in arguments.items() for word in ("-e", json.dumps({name: value}))]
        return subprocess.run(
            [ROOT / ".venv/bin/ansible-playbook", "-i", self.inventory, ROOT / f"playbooks/image/{verb}.yml", *extra, *words],
            capture_output=True, text=True, check=False, timeout=200, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        )  # fmt: skip


def ids(host: ContainerHost, name: str) -> str:
    return host.docker("images", "--quiet", "--no-trunc", name)


@pytest.fixture(scope="module")
def far_engine() -> Iterator[Engine]:
    """An engine that has the base of the stand-in models, and none of them."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    engine = start_engine(folder)
    load_base(engine)
    yield engine
    stop_engine(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hosts(host: ContainerHost, far_engine: Engine, ssh_server: SshServer, tmp_path: Path) -> Iterator[Hosts]:
    far = ContainerHost(far_engine, tmp_path / "far")
    near_vars: dict[str, Any] = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    near_engine, own_engine = ({"engine": "docker", "engine_address": each.engine.address, "state_dir": str(each.folder)} for each in (host, far))
    members = {"near": {**near_vars, "lepton_engine": near_engine}, "far": {**ssh_server.host_vars, "lepton_engine": own_engine}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"container_hosts": {"hosts": members}}))
    yield Hosts(host, far, tmp_path / "hosts.yml")
    far.docker("rmi", "--force", IMAGE)


def test_an_image_goes_by_ssh_without_the_layers_that_are_there(hosts: Hosts) -> None:
    assert ids(hosts.far, IMAGE) == ""
    planned = hosts.playbook("move", "--check", image=IMAGE, to_hosts=["far"])
    assert planned.returncode == 0, planned.stdout
    assert "changed=1" in planned.stdout
    assert ids(hosts.far, IMAGE) == ""
    moved = hosts.playbook("move", "-v", image=IMAGE)
    assert moved.returncode == 0, moved.stdout
    assert ids(hosts.far, IMAGE) == ids(hosts.near, IMAGE)
    # The base's 30 MiB stayed where they are; what went is the server's own file.
    size = json.JSONDecoder().raw_decode(moved.stdout[moved.stdout.index('"size": ') + 8 :])[0]
    assert size < 100_000
    assert hosts.far.docker("run", "--rm", "--network=none", IMAGE, "python3", "-c", "print('runs')") == "runs"
    again = hosts.playbook("move", image=IMAGE)
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("changed=0") == 3, again.stdout
    assert not [path for each in (hosts.near, hosts.far) for path in each.folder.rglob("*.tar")]
    assert not list(Path(tempfile.gettempdir()).glob("ansible.*.lepton"))


def test_an_engine_without_any_of_its_layers_gets_them_all(hosts: Hosts) -> None:
    hosts.far.docker("rmi", "--force", "python:sandbox")
    try:
        moved = hosts.playbook("move", image=IMAGE, to_hosts=["far"])
        assert moved.returncode == 0, moved.stdout
        assert ids(hosts.far, IMAGE) == ids(hosts.near, IMAGE)
    finally:
        load_base(hosts.far.engine)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"image": "none:1"}, "no host has the image none:1 (asked far, near)"),
        ({"image": IMAGE, "to_hosts": ["nowhere"]}, "there is no host nowhere"),
        ({"image": IMAGE, "from_host": "far"}, "far does not have the image model:1"),
        ({"image": "a b"}, "is not an image"),
    ],
)
def test_what_cannot_be_moved(hosts: Hosts, arguments: dict[str, Any], told: str) -> None:
    failed = hosts.playbook("move", **arguments)
    assert failed.returncode != 0
    assert told in failed.stdout.replace("\n", " "), failed.stdout
    assert ids(hosts.far, IMAGE) == ""
    assert not list(Path(tempfile.gettempdir()).glob("ansible.*.lepton"))


def test_a_host_that_does_not_answer_stops_the_move_before_it_begins(hosts: Hosts) -> None:
    hosts.far.engine = Engine("unix:///nowhere/docker.sock", hosts.far.folder)
    text = hosts.inventory.read_text()
    told = yaml.safe_load(text)
    told["container_hosts"]["hosts"]["far"]["lepton_engine"]["engine_address"] = "unix:///nowhere/docker.sock"
    hosts.inventory.write_text(yaml.safe_dump(told))
    failed = hosts.playbook("move", image=IMAGE)
    assert "far did not answer: docker does not answer at unix:///nowhere/docker.sock" in failed.stdout.replace("\n", " "), failed.stdout


def test_an_archive_that_is_not_what_it_should_be_is_not_taken(hosts: Hosts, tmp_path: Path) -> None:
    identity = ids(hosts.near, IMAGE)
    layers = json.loads(hosts.near.docker("image", "inspect", IMAGE))[0]["RootFS"]["Layers"]
    meant = {"name": IMAGE, "id": identity, "layers": [*layers[:-1], "sha256:" + "0" * 64], "state": "loaded"}
    (tmp_path / "torn.tar").write_bytes(b"not an archive")
    failed = hosts.far.module("model_image_archive", **meant, archive=str(tmp_path / "torn.tar"))
    assert failed["failed"]
    assert "docker load" in failed["msg"]
    # Another image under the name that was asked for.
    hosts.near.docker("save", "--output", str(tmp_path / "other.tar"), "model:2")
    with tarfile.open(tmp_path / "other.tar") as archive:
        archive.extractall(tmp_path / "other", filter="data")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    (tmp_path / "other" / "manifest.json").write_text(json.dumps([{**manifest[0], "RepoTags": [IMAGE]}]))
    with tarfile.open(tmp_path / "wrong.tar", "w") as archive:
        archive.add(tmp_path / "other", arcname=".")
    failed = hosts.far.module("model_image_archive", **meant, archive=str(tmp_path / "wrong.tar"))
    assert "is not what was sent" in failed["msg"]
    assert ids(hosts.far, IMAGE) == ""


# A registry

# bcrypt of `only-for-tests`, as htpasswd -B writes it
ACCOUNT = "builder:$2b$04$fYEOO/8NfFjf1iy2Q/lOv.Gb1FrGEWFAnbGwRrZvdofCdOlALmcO6\n"
PASSWORD = "only-for-tests"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on the loopback address; it wants a name and a password."""
    require([] if shutil.which("docker-registry") else ["docker-registry"], "docker")
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    (folder / "htpasswd").write_text(ACCOUNT)
    settings = {
        "version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder / "data")}}, "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}},
    }  # fmt: skip
    (folder / "config.yml").write_text(yaml.safe_dump(settings))
    daemon = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v2/").status_code == 401
        except httpx.HTTPError:
            return False

    eventually(answers)
    yield f"127.0.0.1:{port}"
    daemon.terminate()
    daemon.wait(10)


def tags(registry: str) -> list[str]:
    answer = httpx.get(f"http://{registry}/v2/model/tags/list", auth=("builder", PASSWORD))
    found: list[str] = answer.json().get("tags") or []
    return found


def test_an_image_is_pushed_once_and_others_can_have_it(host: ContainerHost, registry: str) -> None:
    given = {"name": IMAGE, "registry": registry, "username": "builder", "password": PASSWORD}
    before = host.images()
    planned = host.module("model_image_registry", check=True, **given)
    assert planned["changed"], planned
    assert tags(registry) == []
    pushed = host.module("model_image_registry", **given)
    assert pushed["changed"], pushed
    assert pushed["image"] == f"{registry}/model:1"
    assert tags(registry) == ["1"]
    manifest = httpx.get(
        f"http://{registry}/v2/model/manifests/1", auth=("builder", PASSWORD), headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    )
    assert manifest.json()["config"]["digest"] == ids(host, IMAGE)
    assert not host.module("model_image_registry", **given)["changed"]
    assert host.images() == before
    assert PASSWORD not in json.dumps([planned, pushed])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"password": "not-the-one"}, "unauthorized|authentication required|denied"),
        ({"name": "none:1"}, "there is no image none:1 on this host"),
        ({"registry": "127.0.0.1:1"}, "could not be asked for 127.0.0.1:1/model:1"),
        ({"registry": None, "username": None, "password": None}, "model:1 names no registry"),
    ],
)
def test_what_cannot_be_pushed(host: ContainerHost, registry: str, change: dict[str, Any], told: str) -> None:
    given = {"name": IMAGE, "registry": registry, "username": "builder", "password": PASSWORD, **change}
    before = host.images(), tags(registry)
    failed = host.module("model_image_registry", **{name: value for name, value in given.items() if value is not None})
    assert failed["failed"]
    assert re.search(told, failed["msg"]), failed["msg"]
    assert "not-the-one" not in failed["msg"]
    assert (host.images(), tags(registry)) == before


def test_the_playbook_finds_the_account_in_the_inventory(hosts: Hosts, registry: str) -> None:
    told = yaml.safe_load(hosts.inventory.read_text())
    told["container_hosts"]["vars"] = {"lepton_registry": registry, "lepton_registries": {registry: {"username": "builder", "password": PASSWORD}}}
    hosts.inventory.write_text(yaml.safe_dump(told))
    pushed = hosts.playbook("push", "-v", image="model:2")
    assert pushed.returncode == 0, pushed.stdout
    assert "2" in tags(registry)
    assert PASSWORD not in pushed.stdout + pushed.stderr

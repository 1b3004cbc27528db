# SPDX-License-Identifier: Apache-2.0
"""The module on a real engine: what it says is compared with what the engine, the container and its clients say."""

from __future__ import annotations

import json
import socket
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import ContainerHost, ansible_module, eventually

from lepton_ai.sandbox.stand import free_port

pytestmark = [pytest.mark.docker, pytest.mark.slow]
MIB = 1 << 20


def served(port: int, path: str = "/") -> Any:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=2).json()
    except (httpx.HTTPError, ValueError):
        return None


def serving(port: int, **more: Any) -> dict[str, Any]:
    return {"state": "healthy", "image": "model:1", "ports": [f"{port}:8080"], "health_path": "/v2/health/ready", "health_port": 8080, **more}


def test_a_container_from_nothing_to_healthy_to_gone(host: ContainerHost) -> None:
    port = free_port()
    wish = serving(port, cpus=0.5, memory="64MiB")
    before = host.everything()
    planned = host.container("one", check=True, **wish)
    assert planned["changed"]
    assert planned["steps"] == ["create", "start", "wait"]
    assert host.everything() == before
    made = host.container("one", **wish)
    assert made["changed"], made
    assert made["changes"] == planned["changes"]
    assert served(port)["model_version"] == "1"
    again = host.container("one", **wish)
    assert not again["changed"]
    assert not again["failed"]
    found = host.inspect("one")
    assert (found["HostConfig"]["NanoCpus"], found["HostConfig"]["Memory"]) == (500_000_000, 64 * MIB)
    # What a container gets when nobody asks for more.
    assert found["HostConfig"]["ReadonlyRootfs"]
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in found["HostConfig"]["SecurityOpt"]
    assert found["HostConfig"]["PortBindings"]["8080/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": str(port)}]
    gone = host.container("one", state="absent")
    assert gone["changed"]
    assert host.docker("ps", "--all", "--quiet") == ""
    assert not host.container("one", state="absent")["changed"]


def test_limits_change_in_place(host: ContainerHost) -> None:
    port = free_port()
    host.container("one", **serving(port, cpus=0.5, memory="64MiB"))
    before = host.inspect("one")
    planned = host.container("one", memory="128MiB", cpus=0.7, restart="always", check=True)
    assert {change["field"]: change["after"] for change in planned["changes"]} == {"memory": "128MiB", "cpus": 0.7, "restart": "always"}
    assert host.inspect("one") == before
    assert host.container("one", memory="128MiB", cpus=0.7, restart="always")["steps"] == ["update"]
    after = host.inspect("one")
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    # The kernel's own word, from inside: cgroup v1 or v2.
    files = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")
    script = f"import os; print([open(f).read().strip() for f in {files} if os.path.exists(f)][0])"
    assert host.docker("exec", "one", "python3", "-c", script) == str(128 * MIB)
    assert not host.container("one", memory="128MiB", cpus=0.7, restart="always")["changed"]


@pytest.mark.parametrize(
    "options",
    [
        {"command": ["/usr/bin/python3", "-c", "import time; time.sleep(600)"]},
        {"environment": {"A": "x y", "B": "{{ 1 + 1 }}", "C": "$(id)", "D": "'\""}},
        {"ports": ["21801:8080", "0.0.0.0:21802:8081"]},
        {"volumes": ["/tmp:/data", "cache:/cache:rw"]},
        {"tmpfs": ["/tmp", "/run"]},
        {"user": "1000:1000"},
        {"read_only": False, "capabilities": ["NET_BIND_SERVICE", "CHOWN"]},
        {"labels": {"team": "nlp", "note": "{{ lookup('pipe', 'id') }}"}},
        {"cpus": 1.5, "memory": "64MiB", "restart": "on-failure"},
        {"ports": [], "volumes": [], "environment": {}},
    ],
    ids=lambda options: ",".join(options),
)
def test_a_second_run_changes_nothing(host: ContainerHost, options: dict[str, Any]) -> None:
    first = host.container("one", image="model:1", **options)
    assert first["changed"], first
    before = host.everything()
    for check in (True, False):
        again = host.container("one", image="model:1", check=check, **options)
        assert not again["changed"], again["changes"]
        assert not again["failed"]
    assert host.everything() == before


def test_a_new_image_takes_the_old_ones_place(host: ContainerHost) -> None:
    port = free_port()
    host.container("one", **serving(port))
    before = host.inspect("one")["Id"]
    planned = host.container("one", check=True, **serving(port, image="model:2"))
    assert planned["changes"] == [{"field": "image", "before": "model:1", "after": "model:2", "effective": "with a brief stop"}]
    assert host.inspect("one")["Id"] == before
    host.container("one", **serving(port, image="model:2"))
    assert served(port)["model_version"] == "2"
    assert len(host.docker("ps", "--all", "--quiet").split()) == 1


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("model:broken", "again and again, the last time with code"),
        ("model:slow", "did not become healthy within 2 s: /v2/health/ready answered 503"),
        ("nowhere/model:9", "is not here, and could not be pulled"),
    ],
)
def test_what_does_not_come_up_leaves_the_old_one(host: ContainerHost, image: str, reason: str) -> None:
    port = free_port()
    host.container("one", **serving(port))
    before = host.inspect("one")["Id"]
    failed = host.container("one", **serving(port, image=image, wait_seconds=2))
    assert failed["failed"]
    assert reason in failed["msg"]
    assert "\x1b" not in failed["msg"]
    assert host.inspect("one")["Id"] == before
    eventually(lambda: served(port))
    assert len(host.docker("ps", "--all", "--quiet").split()) == 1


def test_one_that_never_came_up_is_not_left(host: ContainerHost) -> None:
    failed = host.container("one", **serving(free_port(), image="model:broken"))
    assert "{{ lookup('pipe', 'id') }} cannot be read" in failed["msg"]  # what it wrote, as it wrote it
    assert "was removed again" in failed["msg"]
    assert host.docker("ps", "--all", "--quiet") == ""


def test_a_port_of_somebody_else(host: ContainerHost) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        failed = host.container("one", **serving(other.getsockname()[1]))
    assert "a port is taken" in failed["msg"]
    assert host.docker("ps", "--all", "--quiet") == ""


def test_a_replacement_that_was_cut_short(host: ContainerHost) -> None:
    """A crash between setting the old one aside and making the new one: the next run goes on from the old one."""
    port = free_port()
    host.container("one", **serving(port))
    host.docker("stop", "--time", "1", "one")
    host.docker("rename", "one", "one.replaced")
    assert host.container("one", **serving(port))["changed"]
    assert served(port)["model_version"] == "1"
    assert host.docker("ps", "--all", "--format", "{{.Names}}") == "one"
    # A crash after the new one serves: only the old one is left to remove.
    host.docker("create", "--name", "one.replaced", "--label", "cloud.lepton.spec={}", "model:1")
    assert host.container("one", **serving(port))["steps"] == ["wait", "drop_aside"]
    assert host.docker("ps", "--all", "--format", "{{.Names}}") == "one"


def test_secrets_are_files_and_show_nowhere(host: ContainerHost) -> None:
    token = "hf_verysecret{{ 1 }}"
    wish = {"image": "model:1", "secrets": {"hf_token": token}}
    made = host.container("one", **wish)
    assert made["changed"]
    assert token not in json.dumps(made)
    assert token not in json.dumps(host.inspect("one"))
    # The image's user, who is not root, reads it.
    assert host.docker("exec", "one", "python3", "-c", "print(open('/run/secrets/hf_token').read(), end='')") == token
    assert host.docker("exec", "one", "python3", "-c", "import os; print(os.getuid())") == "1000"
    assert (host.folder / "secrets").stat().st_mode & 0o077 == 0
    assert not host.container("one", **wish)["changed"]
    changed = host.container("one", image="model:1", secrets={"hf_token": "other-secret"})
    assert [change["field"] for change in changed["changes"]] == ["secrets"]
    assert host.docker("exec", "one", "python3", "-c", "print(open('/run/secrets/hf_token').read(), end='')") == "other-secret"
    assert len(list((host.folder / "secrets" / "one").iterdir())) == 1
    host.container("one", state="absent")
    assert not (host.folder / "secrets" / "one").exists()


def test_containers_of_others_are_left_alone(host: ContainerHost) -> None:
    host.docker("run", "--detach", "--name", "theirs", "model:1")
    before = host.everything()
    for state in ("absent", "stopped", "started"):
        assert "was not made by Lepton" in host.container("theirs", state=state)["msg"]
    assert host.everything() == before
    (seen,) = host.module("container_host_info")["containers"]
    assert (seen["name"], seen["owned"]) == ("theirs", False)


def test_a_container_of_somebody_else_is_taken_over_as_it_is(host: ContainerHost) -> None:
    port = free_port()
    made = ["run", "--detach", "--name", "theirs", "--publish", f"127.0.0.1:{port}:8080", "--env", "A=b c", "--label", "team=x", "--memory", "64m"]
    host.docker(*made, "--volume", "/tmp:/data", "model:1")
    before = host.inspect("theirs")
    files = host.everything()
    planned = host.container("theirs", state="adopted", check=True)
    assert planned["changed"]
    assert host.everything() == files
    assert host.container("theirs", state="adopted")["changed"]
    assert not host.container("theirs", state="adopted")["changed"]
    assert host.inspect("theirs") == before
    # What it was made from is known, so what is as it was is no change, and what needs a new container keeps the rest.
    wish = {"image": "model:1", "ports": [f"127.0.0.1:{port}:8080"], "environment": {"A": "b c"}, "labels": {"team": "x"}, "volumes": ["/tmp:/data:rw"]}
    assert not host.container("theirs", **wish, memory="64MiB")["changed"]
    assert host.container("theirs", memory="96MiB")["steps"] == ["update"]
    assert host.container("theirs", image="model:2")["changed"]
    assert eventually(lambda: served(port))["model_version"] == "2"
    assert "A=b c" in host.inspect("theirs")["Config"]["Env"]
    host.container("theirs", state="absent")
    assert not list((host.folder / "adopted").iterdir())
    assert "there is no container theirs" in host.container("theirs", state="adopted")["msg"]


def test_a_container_that_could_not_be_made_again_is_not_taken_over(host: ContainerHost) -> None:
    host.docker("run", "--detach", "--name", "theirs", "--env", "DB_PASSWORD=x", "model:1")
    assert "use `secrets`" in host.container("theirs", state="adopted")["msg"]
    assert "was not made by Lepton" in host.container("theirs", state="absent")["msg"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--entrypoint", "/usr/bin/python3"], "Entrypoint"),
        (["--network", "host"], "NetworkMode"),
        (["--privileged"], "Privileged"),
        (["--add-host", "a:1.2.3.4"], "ExtraHosts"),
    ],
)
def test_a_container_that_would_lose_something_is_not_taken_over(host: ContainerHost, options: list[str], told: str) -> None:
    host.docker("create", "--name", "theirs", *options, "model:1")
    before = host.everything()
    failed = host.container("theirs", state="adopted")
    assert f"could not be made again as it is: it has its own {told}" in failed["msg"]
    assert host.everything() == before


def test_memory_is_promised_once(host: ContainerHost) -> None:
    """Two that were planned when there was room for one: the module that comes second finds it taken."""
    reserve = host.module("container_host_info")["engine"]["memory"] - 100 * MIB
    small = {"image": "model:1", "memory_reserve": str(reserve)}
    assert host.container("one", memory="64MiB", **small)["changed"]
    before = host.everything()
    failed = host.container("two", memory="64MiB", **small)
    assert "two was to get 64MiB, and this host has 36MiB left to give" in failed["msg"], failed
    assert host.everything() == before
    assert "one was to get 128MiB" in host.container("one", memory="128MiB", **small)["msg"]
    assert host.inspect("one")["HostConfig"]["Memory"] == 64 * MIB
    assert host.container("one", memory="96MiB", **small)["changed"]
    assert host.container("one", memory="96MiB", environment={"A": "b"}, **small)["changed"]  # what it had itself counts for it


def test_an_image_for_another_architecture(host: ContainerHost, tmp_path: Path) -> None:
    """The same image with another word in its configuration, as a build on another machine would have it."""
    host.docker("save", "--output", str(tmp_path / "image.tar"), "model:1")
    with tarfile.open(tmp_path / "image.tar") as archive:
        archive.extractall(tmp_path / "image", filter="data")
    manifest = json.loads((tmp_path / "image" / "manifest.json").read_text())
    config = tmp_path / "image" / manifest[0]["Config"]
    config.write_text(json.dumps({**json.loads(config.read_text()), "architecture": "arm64"}))
    (tmp_path / "image" / "manifest.json").write_text(json.dumps([{**manifest[0], "RepoTags": ["foreign:1"]}]))
    with tarfile.open(tmp_path / "foreign.tar", "w") as archive:
        archive.add(tmp_path / "image", arcname=".")
    host.docker("load", "--input", str(tmp_path / "foreign.tar"))
    failed = host.container("one", image="foreign:1")
    assert "is for arm64, and this host is amd64" in failed["msg"]
    assert host.docker("ps", "--all", "--quiet") == ""


def test_an_engine_that_is_down(host: ContainerHost) -> None:
    failed = ansible_module("container_host_info", {"engine": "docker", "engine_address": "unix:///nowhere/docker.sock", "state_dir": str(host.folder)})
    assert "docker does not answer at unix:///nowhere/docker.sock" in failed["msg"]


def test_what_a_host_has_and_what_is_free(host: ContainerHost) -> None:
    port = free_port()
    before = host.module("container_host_info")
    host.container("one", **serving(port, memory="64MiB", cpus=0.5))
    after = host.module("container_host_info", name="one", log_lines=5, port_range=f"{port}-{port + 1}")
    assert before["room"]["memory_free"] - after["room"]["memory_free"] == 64 * MIB
    assert before["room"]["cpus_free"] - after["room"]["cpus_free"] == 0.5
    assert port not in after["ports_free"]
    assert after["log"] == "serving version 1\n"
    assert "model:1" in after["container_images"]

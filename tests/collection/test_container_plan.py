# SPDX-License-Identifier: Apache-2.0
"""Plans of containers: what needs a new one, what is changed in place, and what is refused. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils import _engine as engine_module
from ansible_collections.lepton.cloud.plugins.module_utils._command import Ran, clean
from ansible_collections.lepton.cloud.plugins.module_utils._container import Container, ContainerError, Limits, Spec, Wish, make_plan, read_spec
from ansible_collections.lepton.cloud.plugins.module_utils._engine import Engine, foreign_spec, lost_by_adoption, podman_container, ports_in_use
from ansible_collections.lepton.cloud.plugins.module_utils._host_lock import host_lock
from ansible_collections.lepton.cloud.plugins.module_utils._ports import listening_ports

SPEC = Spec(image="model:1", ports=("127.0.0.1:20000:8080",), environment=(("A", "1"),), health_path="/ready", health_port=8080)
RUNNING = Container("one", "id", "running", "model:1", "sha256:aa", SPEC, Limits(1, 64 << 20))
MIB = 1 << 20


def wish(state: str = "started", limits: dict[str, Any] | None = None, *, secrets_differ: bool = False, **given: Any) -> Wish:
    return Wish("one", state, given, limits or {}, secrets_differ)


@pytest.mark.parametrize(
    ("wanted", "found", "image_id", "steps"),
    [
        (wish(image="model:1"), None, "sha256:aa", ("create", "start")),
        (wish(image="model:1"), None, None, ("pull", "create", "start")),
        (wish("present", image="model:1"), None, "sha256:aa", ("create",)),
        (wish("healthy", image="model:1", ports=SPEC.ports, health_path="/x", health_port=8080), None, "sha256:aa", ("create", "start", "wait")),
        (wish(image="model:1"), RUNNING, "sha256:aa", ()),
        (wish(), replace(RUNNING, state="exited"), None, ("start",)),
        (wish(), replace(RUNNING, state="paused"), None, ("unpause",)),
        (wish("present"), replace(RUNNING, state="exited"), None, ()),
        (wish("stopped"), RUNNING, None, ("stop",)),
        (wish("stopped"), replace(RUNNING, state="exited"), None, ()),
        (wish(limits={"memory": 128 * MIB}), RUNNING, None, ("update",)),
        (wish(limits={"memory": 64 * MIB, "cpus": 1.0}), RUNNING, None, ()),
        (wish(image="model:2"), RUNNING, "sha256:bb", ("stop", "set_aside", "create", "start", "wait", "drop_aside")),
        (wish(image="model:1"), RUNNING, "sha256:bb", ("stop", "set_aside", "create", "start", "wait", "drop_aside")),
        (wish("stopped", image="model:2"), replace(RUNNING, state="exited"), "sha256:bb", ("set_aside", "create", "drop_aside")),
        (wish(secrets_differ=True), RUNNING, None, ("pull", "stop", "set_aside", "create", "start", "wait", "drop_aside")),
        (wish("absent"), RUNNING, None, ("stop", "remove", "forget")),
        (wish("absent"), replace(RUNNING, state="exited"), None, ("remove", "forget")),
        (wish("absent"), None, None, ()),
    ],
)
def test_the_steps(wanted: Wish, found: Container | None, image_id: str | None, steps: tuple[str, ...]) -> None:
    if wanted.secrets_differ:
        image_id, steps = "sha256:aa", steps[1:]
    assert make_plan(wanted, found, image_id).steps == steps


def test_what_needs_a_new_container_says_that_it_stops_briefly() -> None:
    plan = make_plan(wish(environment=(("A", "2"),), limits={"cpus": 2.0}), RUNNING, "sha256:aa")
    assert [(change.field, change.before, change.after, change.effective) for change in plan.changes] == [
        ("environment", {"A": "1"}, {"A": "2"}, "with a brief stop"),
        ("cpus", 1, 2.0, "now"),
    ]
    assert plan.spec == replace(SPEC, environment=(("A", "2"),))
    assert plan.diff() == {"before": {"environment": {"A": "1"}, "cpus": 1}, "after": {"environment": {"A": "2"}, "cpus": 2.0}}


def test_an_image_whose_name_means_another_by_now_is_a_change() -> None:
    (change,) = make_plan(wish(image="model:1"), RUNNING, "sha256:bb").changes
    assert (change.before, change.after) == ("model:1 (aa)", "model:1 (bb)")


def test_a_replacement_that_was_cut_short_is_finished() -> None:
    again = make_plan(wish(image="model:2"), RUNNING, "sha256:bb", aside=True).steps
    assert again == ("drop_aside", "stop", "set_aside", "create", "start", "wait", "drop_aside")
    assert make_plan(wish(image="model:1"), RUNNING, "sha256:aa", aside=True).steps == ("wait", "drop_aside")


@pytest.mark.parametrize(
    ("given", "limits", "reason"),
    [
        ({"image": "--privileged"}, {}, "is not an image"),
        ({"image": "Model:1"}, {}, "is not an image"),
        ({"image": "m:1", "ports": ("80",)}, {}, "is not a published port"),
        ({"image": "m:1", "ports": ("70000:80",)}, {}, "is not a published port"),
        ({"image": "m:1", "volumes": ("/a/../etc:/x",)}, {}, "is not a mount"),
        ({"image": "m:1", "volumes": ("/a:/x,shared",)}, {}, "is not a mount"),
        ({"image": "m:1", "environment": (("DB_PASSWORD", "x"),)}, {}, "use `secrets`"),
        ({"image": "m:1", "environment": (("a b", "x"),)}, {}, "is not the name of a variable"),
        ({"image": "m:1", "environment": (("A", "x\ny"),)}, {}, "has several lines"),
        ({"image": "m:1", "secrets": ("../x",)}, {}, "is not the name of a file"),
        ({"image": "m:1", "capabilities": ("ALL --privileged",)}, {}, "is no capability"),
        ({"image": "m:1", "gpus": "all --privileged"}, {}, "gpus"),
        ({"image": "m:1", "user": "0;id"}, {}, "user"),
        ({"image": "m:1", "health_path": "/x", "health_port": 9}, {}, "not among the published ports"),
        ({"image": "m:1", "labels": (("cloud.lepton.spec", "{}"),)}, {}, "is not a label of yours"),
        ({"image": "m:1"}, {"memory": 1024}, "is too little"),
        ({"image": "m:1"}, {"cpus": 0.0}, "is not a number of CPUs"),
        ({}, {}, "to create it an image is needed"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_done(given: dict[str, Any], limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(ContainerError, match=reason):
        make_plan(wish(limits=limits, **given), None, "sha256:aa")


@pytest.mark.parametrize("name", ["", "-x", "A", "a b", "a" * 64, "one.replaced", "{{x}}", "a/b"])
def test_names(name: str) -> None:
    with pytest.raises(ContainerError, match="is not a container name"):
        make_plan(Wish(name, "absent", {}, {}), None, None)


def test_containers_of_others_are_left_alone() -> None:
    for state in ("absent", "started", "stopped"):
        with pytest.raises(ContainerError, match="was not made by Lepton"):
            make_plan(wish(state), replace(RUNNING, spec=None), None)


def test_the_label_brings_back_what_was_written() -> None:
    spec = replace(SPEC, command=("serve", "--x"), volumes=("/a:/b:ro",), secrets=("t",))
    assert read_spec(spec.to_json()) == spec
    assert [read_spec(text) for text in ("", "[]", '{"image": ', "{}")] == [None] * 4


def test_podman_is_read_as_docker_is() -> None:
    """Recorded with Podman 4.3.1 here, which creates containers and cannot start them on these machines."""
    (data,) = json.loads((Path(__file__).parent / "podman_inspect.json").read_text())
    found = podman_container(data)
    assert (found.name, found.state, found.limits, found.published) == ("one", "created", Limits(0.5, 64 * MIB), ("127.0.0.1:21000:8080",))
    assert found.image_id.startswith("sha256:")
    assert found.spec is not None
    assert found.spec.command == ("python3", "-V")
    data["State"] = {"Status": "stopped", "Healthcheck": {"Status": "unhealthy"}}  # as Podman 3 says it
    assert (podman_container(data).state, podman_container(data).health) == ("exited", "unhealthy")


def test_podman_is_asked_with_its_own_words() -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> Ran:
        asked.append(command)
        return Ran(125, "[]\n", "Error: inspecting object: no such container one\n")

    engine = Engine("podman", address="unix:///run/podman.sock", state_dir="/nowhere", run=run)
    assert engine.container("one") is None
    assert asked == [["podman", "--url", "unix:///run/podman.sock", "container", "inspect", "one"]]


@pytest.mark.parametrize(
    ("ran", "reason"),
    [
        (Ran(1, "", "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?"), "does not answer at unix:///x"),
        (Ran(127, "", "there is no program docker here"), "Is the engine installed and running"),
        (Ran(124, "", "docker did not answer within 60 s"), "did not answer within 60 s"),
        (Ran(1, "", "Error response: driver failed: Bind for 0.0.0.0:80 failed: port is already allocated"), "a port is taken"),
        (Ran(1, "", "write /x: no space left on device"), "the disk of this host is full"),
        (Ran(1, "", "\x1b[31m{{ lookup('pipe','id') }}\x1b[0m"), r"docker rename: {{ lookup"),
    ],
)
def test_an_engines_refusal_is_said_in_words(ran: Ran, reason: str) -> None:
    engine = Engine("docker", address="unix:///x", state_dir="/nowhere", run=lambda *_words, **_options: ran)
    with pytest.raises(ContainerError, match=reason) as caught:
        engine.put_back("one", start=True)
    assert "\x1b" not in str(caught.value)


def test_a_lock_that_somebody_holds_in_the_midst_of_a_replacement_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "ROOM_SECONDS", 0.1)
    asked: list[str] = []

    def run(command: list[str], **_options: Any) -> Ran:
        asked.append(" ".join(command[1:]))
        return Ran(1, "", "Error: No such container: x") if "inspect" in command else Ran(0, "", "")

    engine = Engine("docker", address=None, state_dir=str(tmp_path), run=run)
    monkeypatch.setattr(engine, "check_architecture", lambda _image: None)
    plan = make_plan(wish(image="model:2"), RUNNING, "sha256:bb")
    with host_lock(engine.lock_dir, "room", 1), pytest.raises(ContainerError, match=r"somebody else is changing room.*The earlier container is back"):
        engine.apply("one", plan, values={}, stop_seconds=1, wait_seconds=1)
    assert asked[asked.index("rename one.replaced one") + 1] == "start one"


def theirs(**host: Any) -> dict[str, Any]:
    return {
        "Config": {"Image": "pg:16", "Entrypoint": None, "Cmd": None, "Env": []}, "HostConfig": host,
        "Mounts": [
            {"Type": "volume", "Name": "pgdata", "Source": "/var/lib/docker/volumes/pgdata/_data", "Destination": "/db", "RW": True},
            {"Type": "bind", "Source": "/etc/pg", "Destination": "/etc/pg", "RW": False}, {"Type": "tmpfs", "Destination": "/run"},
        ],
    }  # fmt: skip


def test_what_is_adopted_keeps_its_volumes_and_its_rights() -> None:
    spec = foreign_spec(theirs(CapDrop=["NET_RAW"], CapAdd=["SYS_PTRACE"]), {})
    assert spec.volumes == ("/etc/pg:/etc/pg:ro", "pgdata:/db:rw")
    assert spec.tmpfs == ("/run",)
    assert {"CHOWN", "SYS_PTRACE", "SETUID"} <= set(spec.capabilities)
    assert "NET_RAW" not in spec.capabilities
    assert foreign_spec(theirs(CapDrop=["ALL"]), {}).capabilities == ()


@pytest.mark.parametrize(
    "host",
    [{"IpcMode": "host"}, {"ShmSize": 1 << 30}, {"Ulimits": [{"Name": "nofile"}]}, {"Runtime": "nvidia"}, {"Dns": ["1.1.1.1"]}, {"GroupAdd": ["video"]},
     {"Sysctls": {"a": "1"}}, {"SecurityOpt": ["seccomp=unconfined"]}, {"PortBindings": {"53/udp": [{"HostPort": "53"}]}}],
    ids=lambda host: next(iter(host)),
)  # fmt: skip
def test_what_would_be_lost_is_not_adopted(host: dict[str, Any]) -> None:
    assert not lost_by_adoption(theirs(), {})
    (lost,) = lost_by_adoption(theirs(**host), {})
    assert lost in (*host, "53/udp")


def test_texts_of_containers_move_no_cursor() -> None:
    assert clean("a\x1b[2J\x1b]0;title\x07b\x1b[31mc\x00\r\nd\re") == "abc\nd\ne"


def test_ports_in_use(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text("  sl  local_address rem_address   st\n   0: 0100007F:4E20 00000000:0000 0A 0\n   1: 0100007F:4E21 0100007F:0050 01 0\n", encoding="ascii")
    stopped = replace(RUNNING, state="exited", published=("127.0.0.1:20005:8080",))
    assert ports_in_use([stopped], listening_ports((str(table), str(tmp_path / "none")))) == [20000, 20005]

# SPDX-License-Identifier: Apache-2.0
"""The modules on a real HAProxy: what they say is compared with HAProxy's own tables, its files, and what a reload brings."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import ansible_module, eventually

from lepton_ai.sandbox.balancer import Balancer
from lepton_ai.sandbox.stand import free_port

pytestmark = [pytest.mark.haproxy, pytest.mark.slow]


class Backend(BaseHTTPRequestHandler):
    """Healthy; answers its name, after the seconds that the query asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(float(self.path.partition("?")[2] or 0))
        body = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def backend() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@dataclass
class Host:
    """The balancer with the modules on one side, and its own socket and files on the other."""

    balancer: Balancer
    port: int

    def module(self, module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        folder = self.balancer.folder
        where = {
            "socket_address": str(folder / "admin.sock"), "master_socket": str(folder / "master.sock"), "config": str(folder / "haproxy.cfg"),
            "services_dir": str(folder / "services"), "state_file": str(folder / "state"),
        }  # fmt: skip
        return ansible_module(module, {**where, **arguments}, check=check)

    def service(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        return self.module("load_balancer_service", name="chat", check=check, **arguments)

    def server(self, name: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        return self.module("load_balancer_server", service="chat", name=name, check=check, **arguments)

    def ask(self, command: str, name: str = "admin.sock") -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.balancer.folder / name))
            client.sendall(command.encode() + b"\n")
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65536), b"")).decode()

    def states(self) -> dict[str, tuple[str, ...]]:
        """Return HAProxy's own words: address, port, weight and administrative state by server (no weight is what draining is)."""

        def state(weight: str, bits: str) -> tuple[str, str]:
            word = "maint" if int(bits) & 0x23 else "drain" if int(bits) & 0x18 or weight == "0" else "ready"
            return ("-" if word == "drain" else weight), word

        lines = [line.split() for line in self.ask("show servers state").splitlines() if line.startswith(tuple("0123456789")) and " " in line]
        return {line[3]: (line[4], line[18], *state(line[7], line[6])) for line in lines if line[1] == "chat"}

    def file(self) -> str:
        path = self.balancer.folder / "services" / "chat.cfg"
        return path.read_text() if path.exists() else ""

    def everything(self) -> tuple[dict[str, tuple[str, ...]], str]:
        return self.states(), self.file()

    def reload(self) -> None:
        """Reload HAProxy as any administrator would, and wait for its new worker."""

        def workers() -> list[str]:
            try:
                told = self.ask("show proc", "master.sock")
            except OSError:  # the master executes itself anew
                return []
            return [line.split()[0] for line in told.partition("# old")[0].splitlines() if " worker " in line]

        before = workers()
        self.ask("reload", "master.sock")
        eventually(lambda: (now := workers()) and not set(now) & set(before) and f"Pid: {now[0]}\n" in self.ask("show info"))


@pytest.fixture
def host(balancer: Balancer) -> Iterator[Host]:
    host = Host(balancer, free_port())
    made = host.service(declaration={"image": "m:1", "port": 8080, "listen_port": host.port, "health_path": "/"}, replicas=1)
    assert made["changed"], made
    yield host
    for name in host.states():
        host.ask(f"set server chat/{name} state maint")
        host.ask(f"shutdown sessions server chat/{name}")
        eventually(lambda name=name: "deleted" in host.ask(f"del server chat/{name}") or name not in host.states())
    (balancer.folder / "services" / "chat.cfg").unlink(missing_ok=True)
    (balancer.folder / "state").write_text("")
    host.reload()


def get(host: Host, path: str = "/") -> str:
    return httpx.get(f"http://127.0.0.1:{host.port}{path}", timeout=10).text


def test_a_service_is_an_address_and_keeps_what_is_wanted(host: Host) -> None:
    assert httpx.get(f"http://127.0.0.1:{host.port}/").status_code == 503  # it listens, and nobody is there yet
    before = host.everything()
    planned = host.service(replicas=2, check=True)
    assert planned["changes"] == [{"field": "replicas", "before": 1, "after": 2, "effective": "now"}]
    assert host.everything() == before
    changed = host.service(replicas=2)
    assert (changed["changed"], changed["reloaded"]) == (True, False)
    assert not host.service(replicas=2)["changed"]
    (seen,) = host.module("load_balancer_info")["services"]
    assert (seen["name"], seen["replicas"], seen["version"], seen["disagreement"]) == ("chat", 2, 2, [])
    assert not host.module("load_balancer_info", name="chat", pods=0)["failed"]
    waited = host.module("load_balancer_info", name="chat", pods=1, wait_seconds=1)
    assert waited["msg"].startswith("requests for chat go to 0 pods, and not to 1, after 1 s: does lepton-endpoints run")


def test_a_server_comes_drains_and_goes(host: Host) -> None:
    with backend() as port:
        before = host.everything()
        planned = host.server("chat-1", address="127.0.0.1", port=port, weight=70, check=True)
        assert planned["changed"]
        assert host.everything() == before
        assert host.server("chat-1", address="127.0.0.1", port=port, weight=70)["changed"]
        assert host.states() == {"chat-1": ("127.0.0.1", str(port), "70", "ready")}
        assert not host.server("chat-1", address="127.0.0.1", port=port, weight=70)["changed"]
        assert get(host) == str(port)
        assert host.server("chat-1", weight=30)["changed"]
        assert host.states()["chat-1"][2] == "30"
        assert host.server("chat-1", state="drain")["changed"]
        assert host.states()["chat-1"][3] == "drain"
        assert not host.server("chat-1", state="drain")["changed"]
        assert host.server("chat-1", state="ready")["changed"]
        assert host.server("chat-1", state="absent")["changed"]
        assert host.states() == {}
        assert "server chat-1" not in host.file()
        assert not host.server("chat-1", state="absent")["changed"]


def test_a_reload_changes_nothing(host: Host) -> None:
    with backend() as one, backend() as two, backend() as three:
        host.server("chat-1", address="127.0.0.1", port=one, weight=70)
        host.server("chat-2", address="127.0.0.1", port=two, weight=60, state="drain")
        host.server("chat-3", address="127.0.0.1", port=three, state="maint")
        before = host.states()
        host.reload()
        assert host.states() == before
        (seen,) = host.module("load_balancer_info")["services"]
        assert seen["disagreement"] == []
        assert [(server["name"], server["state"]) for server in seen["servers"]] == [("chat-1", "ready"), ("chat-2", "drain"), ("chat-3", "maint")]
        assert not host.server("chat-2", state="drain")["changed"]
        host.server("chat-2")
        host.server("chat-3")
        assert [(words[2], words[3]) for words in host.states().values()] == [("70", "ready"), ("60", "ready"), ("100", "ready")]
        # What somebody changes by hand is seen, and brought back into agreement by the next run.
        host.ask("set server chat/chat-1 weight 5")
        (seen,) = host.module("load_balancer_info")["services"]
        assert "chat-1 is 127.0.0.1:" in seen["disagreement"][0]
        assert host.server("chat-1")["changed"]
        (seen,) = host.module("load_balancer_info")["services"]
        assert seen["disagreement"] == []


def test_a_drain_waits_for_its_sessions_and_not_for_ever(host: Host) -> None:
    with backend() as port:
        host.server("chat-1", address="127.0.0.1", port=port)
        answers: list[str] = []
        client = threading.Thread(target=lambda: answers.append(get(host, "/?4")))
        client.start()
        eventually(lambda: "\nchat,chat-1,0,0,1," in host.ask("show stat"))
        failed = host.server("chat-1", state="absent", drain_seconds=1)
        assert "chat/chat-1 still has 1 sessions after 1 s, so it is as it was" in failed["msg"]
        assert host.states()["chat-1"][3] == "ready"
        assert "server chat-1" in host.file()
        assert host.server("chat-1", state="absent", drain_seconds=30)["changed"]
        client.join()
        assert answers == [str(port)]


def test_a_drain_waits_for_what_an_old_worker_still_serves(host: Host) -> None:
    with backend() as port:
        host.server("chat-1", address="127.0.0.1", port=port)
        answers: list[str] = []
        client = threading.Thread(target=lambda: answers.append(get(host, "/?6")))
        client.start()
        eventually(lambda: "\nchat,chat-1,0,0,1," in host.ask("show stat"))
        host.reload()  # another service came or went; the request goes on in the old worker
        assert "\nchat,chat-1,0,0,0," in host.ask("show stat")
        assert "still has 1 sessions after 1 s" in host.server("chat-1", state="absent", drain_seconds=1)["msg"]
        assert host.server("chat-1", state="absent", drain_seconds=30)["changed"]
        client.join()
        assert answers == [str(port)]


def test_a_drain_keeps_nobody_else_waiting(host: Host) -> None:
    with backend() as one, backend() as two:
        host.server("chat-1", address="127.0.0.1", port=one)
        client = threading.Thread(target=lambda: get(host, "/?5"))
        client.start()
        eventually(lambda: "\nchat,chat-1,0,0,1," in host.ask("show stat"))
        leaving = threading.Thread(target=lambda: host.server("chat-1", state="absent", drain_seconds=30))
        leaving.start()
        eventually(lambda: host.states()["chat-1"][3] == "drain")
        assert host.server("chat-2", address="127.0.0.1", port=two)["changed"]
        assert "chat-1" in host.states()
        leaving.join()
        client.join()
        assert list(host.states()) == ["chat-2"]
        assert "server chat-2" in host.file()


def test_what_was_cut_short_before_its_reload_is_finished(host: Host) -> None:
    path = host.balancer.folder / "services" / "chat.cfg"
    text = path.read_text()
    path.unlink()
    assert host.service(state="absent")["changed"]
    with pytest.raises(httpx.ConnectError):
        get(host)
    assert not host.service(state="absent")["changed"]
    path.write_text(text)
    made = host.service()
    assert (made["changed"], made["reloaded"]) == (True, True)
    assert httpx.get(f"http://127.0.0.1:{host.port}/").status_code == 503
    assert not host.service()["changed"]


def test_clients_notice_no_reload(host: Host) -> None:
    with backend() as port:
        host.server("chat-1", address="127.0.0.1", port=port)
        load = subprocess.Popen(
            ["wrk", "-t1", "-c4", "-d4s", f"http://127.0.0.1:{host.port}/"], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(3):
            host.reload()
        seen, _none = load.communicate()
        assert "requests in" in seen
        assert "Socket errors" not in seen
        assert "Non-2xx" not in seen


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("a b", {}, "is not a server name"),
        ("chat-9", {}, "an address and a port are needed"),
        ("chat-9", {"address": "127.0.0.1", "port": 1, "weight": 300}, "HAProxy takes 1 to 256"),
        ("chat-9", {"address": "no.such.host.invalid", "port": 1}, "no.such.host.invalid is not known to this load balancer"),
    ],
)
def test_bad_input_changes_nothing(host: Host, name: str, arguments: dict[str, Any], reason: str) -> None:
    before = host.everything()
    failed = host.server(name, **arguments)
    assert failed["failed"]
    assert reason in failed["msg"]
    assert host.everything() == before


def test_a_service_that_is_not_there(host: Host) -> None:
    assert "has no service nope" in host.module("load_balancer_server", service="nope", name="x", address="127.0.0.1", port=1)["msg"]
    assert not host.module("load_balancer_server", service="nope", name="x", state="absent")["changed"]


def test_a_port_that_is_taken_leaves_the_others_as_they_are(host: Host) -> None:
    with socket.socket() as other, backend() as port:
        host.server("chat-1", address="127.0.0.1", port=port)
        other.bind(("127.0.0.1", 0))
        other.listen()
        wish = {"image": "m:1", "port": 1, "listen_port": other.getsockname()[1]}
        failed = host.module("load_balancer_service", name="late", declaration=wish, replicas=1)
        assert "could not start with its new configuration (is the port taken?)" in failed["msg"]
        assert not (host.balancer.folder / "services" / "late.cfg").exists()
        assert get(host) == str(port)


def test_a_service_with_servers_is_not_removed(host: Host) -> None:
    with backend() as port:
        host.server("chat-1", address="127.0.0.1", port=port)
        assert "chat still has servers" in host.service(state="absent")["msg"]
        host.server("chat-1", state="absent")
        assert host.service(state="absent")["changed"]
        assert host.file() == ""
        assert not host.service(state="absent")["changed"]
        with pytest.raises(httpx.ConnectError):
            get(host)


def test_backends_of_others_are_left_alone(host: Host) -> None:
    theirs = host.balancer.folder / "services" / "theirs.cfg"
    theirs.write_text("backend theirs\n  server x 127.0.0.1:1\n")
    try:
        host.reload()
        assert host.module("load_balancer_info")["foreign"] == {"theirs": ["x"]}
        wish = {"image": "m:1", "port": 1, "listen_port": free_port()}
        assert "was not written by Lepton" in host.module("load_balancer_service", name="theirs", declaration=wish, replicas=1)["msg"]
        assert "was not written by Lepton" in host.module("load_balancer_server", service="theirs", name="x", state="absent")["msg"]
        assert theirs.read_text() == "backend theirs\n  server x 127.0.0.1:1\n"
    finally:
        theirs.unlink()


def test_a_balancer_that_is_down(host: Host, tmp_path: Path) -> None:
    for address, reason in (("/nowhere/admin.sock", "HAProxy does not answer at /nowhere/admin.sock"), ("127.0.0.1:1", "does not answer at 127.0.0.1:1")):
        assert reason in ansible_module("load_balancer_info", {"socket_address": address, "services_dir": str(tmp_path)})["msg"]


def test_over_tcp_as_over_its_socket(balancer: Balancer, tmp_path: Path) -> None:
    """A second HAProxy, whose Runtime API listens on TCP."""
    port, listen = free_port(), free_port()
    (tmp_path / "services").mkdir()
    (tmp_path / "state").touch()
    (tmp_path / "haproxy.cfg").write_text(
        f"global\n  stats socket ipv4@127.0.0.1:{port} level admin expose-fd listeners\n  server-state-file {tmp_path}/state\n"
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 9s\n  timeout server 9s\n  load-server-state-from-file global\n"
    )
    process = subprocess.Popen(
        ["haproxy", "-W", "-S", f"{tmp_path}/master.sock", "-f", "haproxy.cfg", "-f", "services"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        where = {
            "socket_address": f"127.0.0.1:{port}", "master_socket": str(tmp_path / "master.sock"), "config": str(tmp_path / "haproxy.cfg"),
            "services_dir": str(tmp_path / "services"), "state_file": str(tmp_path / "state"),
        }  # fmt: skip
        eventually((tmp_path / "master.sock").exists)
        wish = {"image": "m:1", "port": 1, "listen_port": listen, "health_path": "/"}
        made = ansible_module("load_balancer_service", {**where, "name": "far", "declaration": wish, "replicas": 1})
        assert made["changed"], made
        with backend() as server:
            added = ansible_module("load_balancer_server", {**where, "service": "far", "name": "far-1", "address": "127.0.0.1", "port": server})
            assert added["changed"], added
            assert httpx.get(f"http://127.0.0.1:{listen}/").text == str(server)
    finally:
        process.terminate()
        process.wait(10)


def test_a_host_s_name_is_looked_up_once_and_then_nothing_changes(host: Host) -> None:
    with backend() as port:
        assert host.server("chat-1", address="localhost", port=port)["changed"]
        assert host.states()["chat-1"][:2] == ("127.0.0.1", str(port))
        assert not host.server("chat-1", address="localhost", port=port)["changed"]
        assert not host.server("chat-1", address="127.0.0.1", port=port)["changed"]
        assert "is not known to this load balancer" in host.server("chat-2", address="nowhere.invalid", port=port)["msg"]

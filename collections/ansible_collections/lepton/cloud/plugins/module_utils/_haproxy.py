# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""HAProxy through its Runtime API, its master socket and its files. PRIVATE to the collection."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, ContextManager

from ._balancer import BalancerError, Entry, Plan, Server, read_entry, read_servers, read_statistics, render, server_words
from ._command import Run, clean, run
from ._host_lock import host_lock
from ._node import given
from ._service import NAME

ANSWER_SECONDS = 10
RELOAD_SECONDS = 15
DELETE_SECONDS = 10
LOCK_SECONDS = 20
POLL_SECONDS = 0.05
SUFFIX = ".cfg"


class Balancer:
    """One HAProxy. `socket_address` is a path, or HOST:PORT where its Runtime API listens on TCP."""

    def __init__(
        self, *, socket_address: str, master_socket: str, config: str, services_dir: str, state_file: str, listen_address: str, run: Run = run
    ) -> None:
        self.socket_address = socket_address
        self.master_socket = master_socket
        self.config = config
        self.services_dir = services_dir
        self.state_file = state_file
        self.listen_address = listen_address
        self._run = run

    def lock(self) -> ContextManager[None]:
        """Hold the right to change anything here: one for all services, since HAProxy checks and reads all files together.

        Raises NodeError when somebody else still holds it after 20 s.
        """
        return host_lock(os.path.join(self.services_dir, ".locks"), "load_balancer", LOCK_SECONDS)

    # The Runtime API

    def ask(self, command: str, *, address: str | None = None) -> str:
        """Send one command and return the whole answer; raise BalancerError when HAProxy cannot be reached."""
        target = address or self.socket_address
        if "\n" in command or ";" in command:
            raise BalancerError("not one command: %s" % ascii(command[:80]))
        try:
            with _connected(target) as connection:
                connection.sendall(command.encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
                parts = []
                while True:
                    part = connection.recv(65536)
                    if not part:
                        return b"".join(parts).decode("utf-8", "replace")
                    parts.append(part)
        except OSError as error:
            hint = " (is the user of this connection allowed to?)" if isinstance(error, PermissionError) else ""
            raise BalancerError("HAProxy does not answer at %s: %s%s" % (target, error, hint)) from error

    def command(self, command: str, *, done: str = "") -> None:
        """Send a command whose success is an empty line, or one that has `done` in it; anything else is an error."""
        answer = self.ask(command).strip()
        if answer and not (done and done in answer):
            raise BalancerError("HAProxy refused %s: %s" % (ascii(command[:120]), clean(answer).splitlines()[0][:300]))

    def servers(self) -> dict[str, dict[str, Server]]:
        """Return the servers by backend and name, as HAProxy has them now."""
        return read_servers(self.ask("show servers state"))

    def statistics(self) -> dict[str, list[dict[str, Any]]]:
        return read_statistics(self.ask("show stat"))

    def version(self) -> str:
        found = re.search(r"^Version: (\S+)", self.ask("show info"), re.MULTILINE)
        return found.group(1) if found else "unknown"

    # Its files

    def path(self, name: str) -> str:
        return os.path.join(self.services_dir, name + SUFFIX)

    def entry(self, name: str) -> Entry | None:
        """Return a service as its file has it, None when there is none."""
        try:
            with open(self.path(name), encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        entry = read_entry(name, text)
        if entry is None:
            raise BalancerError("%s was not written by Lepton, so it is left alone: choose another name" % self.path(name))
        return entry

    def entries(self) -> list[Entry]:
        """Return all services of this balancer, by name."""
        names = sorted(file[: -len(SUFFIX)] for file in (os.listdir(self.services_dir) if os.path.isdir(self.services_dir) else ()) if file.endswith(SUFFIX))
        found = []
        for name in names:
            if NAME.fullmatch(name):
                with open(self.path(name), encoding="utf-8") as file:
                    entry = read_entry(name, file.read())
                if entry is not None:
                    found.append(entry)
        return found

    def runs(self, name: str) -> bool:
        """Return whether the running HAProxy has a backend of this name."""
        return name in self.statistics()

    def is_foreign(self, name: str) -> bool:
        """Return whether HAProxy's own configuration has a proxy of this name."""
        return re.search(r"^\s*(?:frontend|backend|listen)\s+%s\s*(?:#|$)" % re.escape(name), self.own_config(), re.MULTILINE) is not None

    def own_config(self) -> str:
        """Return HAProxy's own configuration, which is not ours; "" where there is none."""
        try:
            with open(self.config, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def exchange(self, name: str, entry: Entry | None, config: str) -> None:
        """Write or remove a service's file together with another own configuration, after HAProxy has found both good together."""
        text = None if entry is None else render(entry, self.listen_address)
        self._check(name, text, config)
        if text is not None:
            _replace(self.path(name), text)
        _replace(self.config, config)
        if text is None:
            with suppress(FileNotFoundError):
                os.unlink(self.path(name))

    def write(self, entry: Entry) -> bool:
        """Write a service's file after HAProxy itself has found it good; return whether anything but its servers has changed.

        Raises BalancerError with HAProxy's words when it is not; then the file is as it was.
        """
        text = render(entry, self.listen_address)
        path = self.path(entry.name)
        try:
            with open(path, encoding="utf-8") as file:
                before = file.read()
        except FileNotFoundError:
            before = ""
        if before == text:
            return False
        self._check(entry.name, text)
        _replace(path, text)
        return proxies(before) != proxies(text)

    def remove(self, name: str) -> None:
        """Remove a service's file; the proxies go with the next reload."""
        self._check(name, None)
        os.unlink(self.path(name))

    def _check(self, name: str, text: str | None, config: str | None = None) -> None:
        """Let HAProxy check its whole configuration with one file of it exchanged, and its own part too where `config` is given."""
        os.makedirs(self.services_dir, mode=0o755, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for file in os.listdir(self.services_dir):
                if file.endswith(SUFFIX) and not file.startswith("."):
                    shutil.copyfile(os.path.join(self.services_dir, file), os.path.join(folder, file))
            target = os.path.join(folder, name + SUFFIX)
            own = self.config
            if config is not None:
                own = os.path.join(folder, "own")  # no service's name: without the ending, HAProxy does not read it a second time
                with open(own, "w", encoding="utf-8") as opened:
                    opened.write(config)
            if text is None:
                with suppress(FileNotFoundError):
                    os.unlink(target)
            else:
                with open(target, "w", encoding="utf-8") as opened:
                    opened.write(text)
            ran = self._run(["haproxy", "-c", "-f", own, "-f", folder], seconds=30, together=True)
            if ran.code:
                said = [line for line in clean(ran.out or ran.trouble).replace(folder, self.services_dir).splitlines() if "ALERT" in line or ran.code > 1]
                raise BalancerError("HAProxy does not accept the configuration of %s: %s" % (name, " ".join(said)[-600:]))

    def save_state(self) -> None:
        """Write down what HAProxy knows of its servers, so that the next reload goes on from there."""
        _replace(self.state_file, self.ask("show servers state"))

    # What is done

    def reload(self) -> None:
        """Have HAProxy read its files anew without losing a connection, and wait until the new worker has taken over.

        Raises BalancerError when the new worker did not start; HAProxy then goes on with the old one.
        """
        self.save_state()
        before = self._processes()
        self.ask("reload", address=self.master_socket)
        deadline = time.monotonic() + RELOAD_SECONDS
        while True:
            try:
                now = self._processes()
            except BalancerError:  # the master executes itself anew
                now = before
            if now["failed"] > before["failed"]:
                raise BalancerError("HAProxy could not start with its new configuration (is the port taken?), and goes on with the old one")
            if now["reloads"] > before["reloads"] and now["workers"] and not set(now["workers"]) & set(before["workers"]) and self._answers(now["workers"]):
                return
            if time.monotonic() > deadline:
                raise BalancerError("HAProxy has not finished its reload after %d s" % RELOAD_SECONDS)
            time.sleep(POLL_SECONDS)  # HAProxy tells nobody when a reload is over; 2.7 and later answer only then

    def _answers(self, workers: list[int]) -> bool:
        try:
            found = re.search(r"^Pid: (\d+)", self.ask("show info"), re.MULTILINE)
        except BalancerError:
            return False
        return found is not None and int(found.group(1)) in workers

    def _processes(self) -> dict[str, Any]:
        """Return what the master says: how often it was reloaded, how often in vain, its present workers and those that only finish."""
        text = self.ask("show proc", address=self.master_socket)
        master = re.search(r"^\d+\s+master\s+(\d+)(?:\s+\[failed: (\d+)\])?", text, re.MULTILINE)
        if master is None:
            raise BalancerError("%s is not HAProxy's master socket: start HAProxy with -W -S %s" % (self.master_socket, self.master_socket))
        present, _title, former = text.partition("# old workers")
        workers, old = ([int(number) for number in re.findall(r"^(\d+)\s+worker", part, re.MULTILINE)] for part in (present, former))
        return {"reloads": int(master.group(1)), "failed": int(master.group(2) or 0), "workers": workers, "former": old}

    def apply_server(self, entry: Entry, name: str, plan: Plan) -> None:
        """Do a server's plan. What waits for sessions to end has waited before, so that nobody else had to."""
        after = replace(entry, servers=given(plan.servers))
        wanted = next((server for server in after.servers if server.name == name), None)
        text = render(after, self.listen_address)
        self._check(entry.name, text)  # once, and before anything is done that could not be written down
        if plan.file_first:
            _replace(self.path(entry.name), text)
        for step in plan.steps:
            self._step(step, entry, name, wanted)
        if not plan.file_first:
            _replace(self.path(entry.name), text)
        self.save_state()

    def _step(self, step: str, entry: Entry, name: str, wanted: Server | None) -> None:
        target = "%s/%s" % (entry.name, name)
        if step == "add" and wanted is not None:
            self.command("add server %s %s:%d %s" % (target, wanted.address, wanted.port, server_words(wanted, entry.service)), done="New server registered")
            self.command("enable health %s" % target)  # a new server is in maintenance, and its checks are off
        elif step == "address" and wanted is not None:
            self.command("set server %s addr %s port %d" % (target, wanted.address, wanted.port), done=" changed")
        elif step == "weight" and wanted is not None:
            self.command("set server %s weight %d" % (target, wanted.weight))
        elif step == "drain":
            self.drain(entry.name, name)
        elif step == "ready":
            self.command("set server %s state ready" % target)
        elif step == "maint":
            self.command("set server %s state maint" % target)
        elif step == "delete":
            self._delete(target)

    def drain(self, backend: str, name: str) -> None:
        """Keep new sessions away from a server."""
        self.command("set server %s/%s state drain" % (backend, name))

    def wait_drained(self, backend: str, name: str, seconds: float) -> None:
        """Wait until a server has no session any more; raise BalancerError when it still has some after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            left = self._sessions(backend, name)
            if not left:
                return
            if time.monotonic() > deadline:
                row = next((row for row in self.statistics().get(backend, []) if row["name"] == name), None)
                if row is None or row["status"].startswith("DOWN"):
                    self.end_sessions(backend, name)
                    return
                raise BalancerError("%s/%s still has %d sessions after %d s" % (backend, name, left, seconds))
            time.sleep(POLL_SECONDS)  # HAProxy tells nobody when a session ends

    def end_sessions(self, backend: str, name: str) -> None:
        """End what a server still has, since nobody is there any more to do so."""
        self.command("shutdown sessions server %s/%s" % (backend, name))

    def _sessions(self, backend: str, name: str) -> int:
        """Return how many sessions a server has, those of workers that only finish what they had before a reload included."""
        tables = [self.statistics()]
        try:
            former = self._processes()["former"]
        except BalancerError:  # without a master there were no reloads
            former = []
        for pid in former:
            with suppress(BalancerError):  # it has just ended
                tables.append(read_statistics(self.ask("@!%d show stat" % pid, address=self.master_socket)))
        rows = [row for table in tables for row in table.get(backend, []) if row["name"] == name]
        return sum(row["sessions"] + row["queued"] for row in rows)

    def _delete(self, target: str) -> None:
        deadline = time.monotonic() + DELETE_SECONDS
        while True:
            answer = self.ask("del server %s" % target).strip()
            if answer.startswith("Server deleted"):
                return
            if "connection" not in answer or time.monotonic() > deadline:  # idle connections are closed a moment later
                raise BalancerError("HAProxy refused to delete %s: %s" % (target, clean(answer)[:200]))
            time.sleep(POLL_SECONDS)


def _connected(target: str) -> socket.socket:
    host, _colon, port = target.rpartition(":")
    if host and port.isdigit() and not target.startswith("/"):
        return socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(target)
    except OSError:
        connection.close()
        raise
    return connection


def _replace(path: str, text: str) -> None:
    """Write a file in one step. One that is there keeps its owner, group and mode, and a link to it stays one."""
    path = os.path.realpath(path)
    partial = path + ".partial"
    try:
        before = os.stat(path)
    except FileNotFoundError:
        before = None
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644 if before is None else 0o600), "w", encoding="utf-8") as file:
        if before is not None:
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), before.st_mode & 0o7777)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def proxies(text: str) -> list[str]:
    """Return the lines that only a reload brings into effect."""
    return [line for line in text.splitlines() if line and not line.startswith(("#", "  server "))]

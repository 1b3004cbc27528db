# SPDX-License-Identifier: Apache-2.0
"""The demo by itself: the conversation of the README, played through the workspace's own API and checked on the system."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from rich.console import Console

from lepton_ai.errors import LeptonError
from lepton_ai.sandbox.client import calling
from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand, free_port
from lepton_ai.slack.views import APPROVE, CANCEL

BOOT_SECONDS = 60


def commands(port: int) -> list[str]:
    """Return the lines of the tour, in the order in which they make sense; the guest answers HTTP on `port`."""
    return [
        "/lepton help",
        f"/lepton node create web-1 image=guest memory=128MiB max_vcpus=4 forward_ports={port}:80",
        "/lepton node resize web-1 vcpus=3",
        "/lepton plan node resize web-1 memory=200MiB",
        "/lepton node list",
        "/lepton node create prod-1 memory=64MiB",
        "/lepton node release web-1",
        "/lepton service create chat",
        "/lepton service scale chat 2",
        "/lepton service update chat image=model:2",
        "/lepton service show chat",
        "/lepton service delete chat",
    ]


class Tour:
    """Plays and prints. A step that is not as it should be raises LeptonError."""

    def __init__(self, stand: Stand, console: Console) -> None:
        self._stand = stand
        self._console = console
        self._ada = Person(stand.base_url, "U0ADA")
        self._grace = Person(stand.base_url, "U0GRACE")
        self._mallory = Person(stand.base_url, "U0MALLORY")
        self._port = free_port()

    def play(self) -> None:
        """Play all steps."""
        lines = commands(self._port)
        self._ask(self._ada, lines[0], "What can be asked for")
        self._ask(self._ada, lines[1], "*changed*")
        before = self._guest(lambda _seen: True)
        self._note(f"the guest itself says: {json.dumps(before)}")
        self._ask(self._ada, lines[2], "`vcpus` 1 → *3*")
        after = self._guest(lambda seen: bool(seen["cpus"] == 3))
        self._note(f"the guest itself says: {json.dumps(after)}")
        self._must(after["boot_id"] == before["boot_id"], "the guest must not have been restarted")
        self._must("3" in self._virsh("vcpucount", "web-1", "--live", "--current"), "libvirt must count 3 vCPUs")
        self._ask(self._ada, lines[2], "*nothing to change*")
        self._ask(self._ada, "/lepton node resize web-1 vcpu=3", "did you mean vcpus?")
        self._ask(self._ada, "/lepton node show \"{{ lookup('pipe','id') }}\"", "is not a node name")
        self._ask(self._mallory, "/lepton node stop web-1", "no grant names slack:T0SANDBOX/U0MALLORY")
        self._ask(self._ada, lines[3], "*would change*")
        self._must("131072" in self._virsh("dumpxml", "web-1", "--inactive"), "a plan must change nothing")
        self._ask(self._ada, lines[4], "web-1")
        self._approve(lines[5])
        self._cancel()
        self._release(lines[6])
        if self._stand.balancer is None:
            self._note("services are not shown: a container engine or a load balancer could not be started here")
        else:
            self._serve(lines[7:])

    def _ask(self, person: Person, line: str, expected: str) -> dict[str, Any]:
        self._console.print(f"\n[bold]{person.user[2:].lower()}[/bold] › {_plain(line)}", highlight=False)
        person.say(line)
        answer = person.wait(lambda text: expected in text)
        self._show(answer)
        return answer

    def _approve(self, line: str) -> None:
        plan = self._ask(self._ada, line, "[Approve]")
        self._console.print("\n[bold]ada[/bold] presses [bold]Approve[/bold], but it was she who asked", highlight=False)
        self._ada.press(plan, APPROVE)
        self._show(self._ada.wait(lambda text: "cannot approve it" in text))
        self._must("prod-1" not in self._virsh("list", "--all", "--name"), "nothing may happen before it is approved")
        self._console.print("\n[bold]grace[/bold] presses [bold]Approve[/bold]", highlight=False)
        self._grace.press(plan, APPROVE)
        self._show(self._ada.wait(lambda text: "of the approved plan" in text and "*changed*" in text))
        self._must("prod-1" in self._virsh("list", "--name"), "what was approved must run")

    def _cancel(self) -> None:
        self._console.print("\n[bold]ada[/bold] › /lepton node stop web-1   (and presses Cancel)", highlight=False)
        self._ada.say("/lepton node stop web-1")
        running = self._ada.wait(lambda text: "running ·" in text)
        pressed = time.monotonic()
        self._ada.press(running, CANCEL)
        self._show(self._ada.wait(lambda text: "*canceled*" in text))
        self._note(f"canceled {time.monotonic() - pressed:.1f} s after the press")
        self._must("running" in self._virsh("domstate", "web-1"), "the node must still run")

    def _release(self, line: str) -> None:
        plan = self._ask(self._ada, line, "[Do it]")
        self._console.print("\n[bold]ada[/bold] presses [bold]Do it[/bold]", highlight=False)
        self._ada.seen = plan["ts"]
        self._ada.press(plan, APPROVE)
        self._show(self._ada.wait(lambda text: "*changed*" in text))
        self._must("web-1" not in self._virsh("list", "--all", "--name"), "libvirt must have no such domain any more")
        self._must(not list(self._stand.folder.glob("disks/web-1*")), "nothing of the node may be left on disk")

    def _serve(self, lines: Sequence[str]) -> None:
        """Show a service of real containers behind HAProxy that grows and rolls while clients call it all the time."""
        create, scale, update, show, delete = lines
        self._ask(self._ada, create, "*changed*")
        with calling(self._stand.service_port) as counts:
            self._ask(self._ada, scale, "`chat-2 state` absent → *ready*")
            self._ask(self._ada, update, "*changed*")
            shown = self._ask(self._ada, show, "2 of 2")
            self._must("model:2" in text_of(shown), "the new image must serve")
        self._note(f"clients that called it all the time count: {', '.join(f'{count} x {what}' for what, count in counts.items())}")
        self._must(set(counts) == {"200"}, "no request may be dropped")
        plan = self._ask(self._ada, delete, "[Do it]")
        self._ada.seen = plan["ts"]
        self._ada.press(plan, APPROVE)
        self._show(self._ada.wait(lambda text: "*changed*" in text))
        assert self._stand.engine is not None
        left = subprocess.run(["docker", "--host", self._stand.engine.address, "ps", "--all", "--quiet"], capture_output=True, text=True, check=False).stdout
        self._must(not left, "nothing of the service may be left")

    def _guest(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            try:
                seen: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self._port}/cgi-bin/status", timeout=5).json()
                if wanted(seen):
                    return seen
            except (httpx.HTTPError, ValueError):
                pass
            self._must(time.monotonic() < deadline, f"the guest must say so within {BOOT_SECONDS} s")
            time.sleep(0.2)

    def _virsh(self, *words: str) -> str:
        return subprocess.run(["virsh", "-q", "-c", self._stand.hypervisor.uri, *words], capture_output=True, text=True, check=False).stdout

    def _show(self, message: dict[str, Any]) -> None:
        for line in text_of(message).splitlines():
            self._console.print(f"  [magenta]lepton[/magenta] {_plain(line)}", highlight=False, soft_wrap=True)

    def _note(self, text: str) -> None:
        self._console.print(f"  [dim]{_plain(text)}[/dim]", highlight=False, soft_wrap=True)

    def _must(self, truth: bool, what: str) -> None:
        if not truth:
            raise LeptonError(f"the tour failed: {what}")


def _plain(text: str) -> str:
    return text.replace("[", "\\[")  # rich would read brackets as markup

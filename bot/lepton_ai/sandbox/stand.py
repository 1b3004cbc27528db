# SPDX-License-Identifier: Apache-2.0
"""Everything the demo and the end-to-end tests stand on, below one folder: hypervisor, container engine, load balancer, site, workspace, bot."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
import yaml

from lepton_ai.errors import LeptonError
from lepton_ai.paths import sandbox_inventory
from lepton_ai.sandbox.balancer import Balancer, balancer_missing, start_balancer, stop_balancer
from lepton_ai.sandbox.delivery import SignedHttp
from lepton_ai.sandbox.engine import Engine, engine_missing, start_engine, stop_engine
from lepton_ai.sandbox.guest import build_guest
from lepton_ai.sandbox.hypervisor import Hypervisor, start_hypervisor, stop_hypervisor
from lepton_ai.sandbox.images import MODELS, load_models
from lepton_ai.sandbox.server import Sandbox
from lepton_ai.sandbox.workspace import APP_TOKEN, BOT_TOKEN, SIGNING_SECRET, TEAM, sandbox_workspace

START_SECONDS = 30
# Ada may do everything, model builders may look and resize web nodes in #models, Mallory has no role. What is called prod
# needs two eyes more: whoever asks, another one of Ada and the builders must agree.
ACCESS = {
    "roles": {
        "operator": {"operations": ["*"]},
        "mender": {"operations": ["service.reconcile"]},
        "builder": {"operations": ["node.list", "node.show", "node.resize", "host.show"], "targets": ["node/web-*"]},
    },
    "grants": [
        {"role": "operator", "principals": [f"slack:{TEAM}/U0ADA"]},
        {"role": "mender", "principals": ["schedule:reconcile"]},
        {"role": "builder", "principals": [f"slack-group:{TEAM}/S0BUILDERS"], "channels": ["C0MODELS"]},
    ],
    "approvals": [
        {"name": "prod", "operations": ["node.*"], "targets": ["node/prod-*"], "approvers": [f"slack:{TEAM}/U0ADA", f"slack-group:{TEAM}/S0BUILDERS"]},
    ],
}


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Bot:
    """A `lepton serve` of its own, as a process that can be killed and started again."""

    site: Path
    log: Path
    environment: dict[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    def connected(self) -> bool:
        """Return whether all of its parts say that they are well, the way to Slack included."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def start(self) -> None:
        """Start it; it connects by itself."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lepton_ai", "serve", "--site", str(self.site)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment, cwd="/",
            )  # fmt: skip

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self) -> None:
        """SIGKILL: what a crash is."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Stand:
    """What runs: `base_url` of the workspace (page included), the site's folder, the hypervisor, the bot."""

    folder: Path
    base_url: str
    site: Path
    hypervisor: Hypervisor
    bot: Bot
    sandbox: Sandbox
    engine: Engine | None
    balancer: Balancer | None
    service_port: int

    def start_bot(self) -> None:
        """Start the bot and wait until it can be spoken to; raise LeptonError with the end of its log when it cannot."""
        self.bot.start()
        deadline = time.monotonic() + START_SECONDS
        while not self.bot.connected():
            assert self.bot.process is not None
            if self.bot.process.poll() is not None or time.monotonic() > deadline:
                raise LeptonError("the bot did not start", hint=self.bot.log.read_text()[-3000:])
            time.sleep(0.05)


def write_site(folder: Path, base_url: str, *, mode: str = "socket", port: int = 0) -> Path:
    """Write the sandbox's site below `folder` and return it."""
    site = folder / "site"
    for made in (site, folder / "backups"):
        made.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    settings = {
        "inventory": str(sandbox_inventory()),
        "state_dir": str(folder / "state"),
        "port": port,
        "environment": ["LEPTON_SANDBOX", "LEPTON_SANDBOX_PORT"],
        "label": "sandbox",
        "reconcile_seconds": 8,
        "public_url": f"http://127.0.0.1:{port}",
        "slack": {"base_url": f"{base_url}api/", "mode": mode, "update_seconds": 0.3},
        "access": ACCESS,
    }
    (site / "lepton.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return site


@contextmanager
def serving(sandbox: Sandbox, port: int) -> Iterator[None]:
    """Serve the workspace on a loopback port meanwhile."""
    server = uvicorn.Server(uvicorn.Config(sandbox.app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, name="sandbox", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise LeptonError(f"the sandbox cannot listen on 127.0.0.1:{port}", hint="choose another port: lepton sandbox --port N")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


def link_guest_image(folder: Path) -> None:
    """Make the sandbox guest an image of the stand's host, called `guest`."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    link = images / "guest"
    link.unlink(missing_ok=True)
    link.symlink_to(build_guest())


def start_containers(folder: Path) -> tuple[Engine | None, Balancer | None]:
    """Start an engine with the stand-in models as images, and a load balancer; without what they need, neither, and say so."""
    missing = engine_missing() + balancer_missing()
    if missing:
        print(f"NOT STARTED: containers and services need {', '.join(missing)}; the rest works", file=sys.stderr)  # noqa: T201
        return None, None
    engine = start_engine(folder)
    load_models(engine, MODELS)
    return engine, start_balancer(folder)


def stop_stand(folder: Path) -> None:
    """End what lives on below `folder` after a stand: guests with libvirtd, containers with Docker, HAProxy."""
    stop_hypervisor(folder)
    stop_balancer(folder)
    stop_engine(folder)


@contextmanager
def stand(folder: Path, *, port: int = 0, mode: str = "socket", start_bot: bool = True) -> Iterator[Stand]:
    """Start everything below `folder` and yield it; the bot and the workspace end with it, guests, containers and their daemons live on.

    `port` is the workspace's (any free one by default), `mode` is Slack's: 'socket' or 'http'.
    """
    folder = folder.resolve()
    hypervisor = start_hypervisor(folder)
    link_guest_image(folder)
    engine, balancer = start_containers(folder)
    service_port = free_port()
    address = port or free_port()
    base_url = f"http://127.0.0.1:{address}/"
    bot_port = free_port()
    site = write_site(folder, base_url, mode=mode, port=bot_port)
    delivery = SignedHttp(f"http://127.0.0.1:{bot_port}/slack/events", SIGNING_SECRET) if mode == "http" else None
    sandbox = Sandbox(sandbox_workspace(), base_url, delivery)
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "USER") if name in os.environ}
    environment |= {"SLACK_BOT_TOKEN": BOT_TOKEN, "SLACK_APP_TOKEN": APP_TOKEN, "SLACK_SIGNING_SECRET": SIGNING_SECRET, "LEPTON_SANDBOX": str(folder)}
    environment["LEPTON_SANDBOX_PORT"] = str(service_port)
    bot = Bot(site, folder / "bot.log", environment, bot_port)
    with serving(sandbox, address):
        try:
            running = Stand(folder, base_url, site, hypervisor, bot, sandbox, engine, balancer, service_port)
            if start_bot:
                running.start_bot()
            yield running
        finally:
            bot.stop()

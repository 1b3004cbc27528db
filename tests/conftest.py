# SPDX-License-Identifier: Apache-2.0
"""What a test may ask for: a site, a store, a hypervisor of its own, the whole stand. Real components, or a loud skip."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_ai.operations.catalog import Catalog, load_catalog
from lepton_ai.paths import builtin_playbooks, sandbox_inventory
from lepton_ai.runs.executor import untrusted
from lepton_ai.runs.service import Runs
from lepton_ai.runs.store import Store
from lepton_ai.sandbox.balancer import Balancer, start_balancer, stop_balancer
from lepton_ai.sandbox.engine import Engine, engine_missing, start_engine, stop_engine
from lepton_ai.sandbox.hypervisor import Hypervisor, start_hypervisor, stop_hypervisor
from lepton_ai.sandbox.images import MODELS, load_models
from lepton_ai.sandbox.stand import Stand, link_guest_image, stand, stop_stand
from lepton_ai.settings import Settings, load_settings
from tests.kubernetes.cluster import GIVEN, Cluster, build, cluster_missing, start_cluster, stop_cluster
from tests.warm import ansible

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {
    "libvirt": ("libvirtd", "qemu-system-x86_64", "qemu-img", "virsh", "busybox", "cpio"),
    "browser": ("chromium",),
    "ssh": ("sshd", "ssh", "nc"),
    "haproxy": ("haproxy", "wrk"),
    "prometheus": ("prometheus", "promtool"),
}
SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


BEGUN = time.monotonic()
# Where a machine is so slow that not all can be tested in the time there is, this is what is left out, loudly.
LIMIT = float(os.environ.get("LEPTON_TEST_SECONDS") or "inf")
LAST = ("tests/end_to_end/", "tests/test_docs.py")  # what takes longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.nodeid.startswith(LAST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - BEGUN > LIMIT:
        pytest.skip(f"NOT TESTED: the {LIMIT:.0f} s that there are for tests are over")
    for marker, programs in NEEDS.items():
        if item.get_closest_marker(marker):
            require([program for program in programs if shutil.which(program, path=SYSTEM_PATH) is None], marker)
    if item.get_closest_marker("docker"):
        require(engine_missing(), "docker")
    if item.get_closest_marker("postgres"):
        require([] if postgres_programs() else ["initdb"], "postgres")
    if item.get_closest_marker("kubernetes"):
        require(cluster_missing(), "kubernetes")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the control plane before the first test, whose time limits are not made for that."""
    wanted = any(item.get_closest_marker("kubernetes") for item in session.items)
    if wanted and not session.config.option.collectonly and GIVEN not in os.environ and not cluster_missing():
        capture, terminal = (session.config.pluginmanager.getplugin(name) for name in ("capturemanager", "terminalreporter"))
        assert capture is not None
        assert terminal is not None
        with capture.global_and_fixture_disabled():
            build(terminal.write_line)


def require(missing: list[str], marker: str) -> None:
    """Skip loudly; in CI a real component that is missing is a failure."""
    if missing:
        reason = f"NOT TESTED ({marker}): missing {', '.join(missing)}; run tools/setup test as root"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's own programs, which Debian keeps off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog({"built-in": builtin_playbooks()})


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name: unix sockets have room for 107 bytes, and pytest's own folders are long."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def write_playbook(folder: Path, noun: str, verb: str, tasks: str, *, options: str = "{}", lepton: str = "{risk: change, rerun: safe, plan: check}") -> None:
    """Write an operation that needs no host: its tasks run on this machine."""
    (folder / noun).mkdir(parents=True, exist_ok=True)
    indented = "\n".join(f"    {line}" for line in tasks.strip().splitlines())
    (folder / noun / f"{verb}.yml").write_text(
        f"- name: Test\n  hosts: localhost\n  connection: local\n  gather_facts: false\n"
        f"  vars: {{ansible_python_interpreter: '{{{{ ansible_playbook_python }}}}'}}\n  tasks:\n{indented}\n"
    )
    (folder / noun / f"{verb}.meta.yml").write_text(
        f"short_description: t\ndescription: t.\nargument_specs:\n  {verb}:\n    short_description: t\n    options: {options}\n    lepton: {lepton}\n"
    )


@pytest.fixture
def site(short_path: Path) -> Settings:
    """A site of its own, with the sandbox inventory and no playbooks yet."""
    (short_path / "lepton.yml").write_text(yaml.safe_dump({"inventory": str(sandbox_inventory()), "environment": ["LEPTON_SANDBOX"]}))
    (short_path / "playbooks").mkdir()
    return load_settings(short_path)


@pytest.fixture
def store(site: Settings) -> Iterator[Store]:
    opened = Store(site.state_dir)
    yield opened
    opened.close()


@pytest.fixture
def make_runs(site: Settings, store: Store) -> Any:
    """Return a function that reads the site's playbooks as they now are and returns the service over them."""
    return lambda: Runs(site, site.catalog(), store)


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """A libvirt daemon of the test run's own, with the guest as image `guest`."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    running = start_hypervisor(folder)
    link_guest_image(folder)
    yield running
    stop_hypervisor(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker daemon of the test run's own, with the stand-in models as images."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    running = start_engine(folder)
    load_models(running, MODELS)
    yield running
    stop_engine(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Kubernetes control plane of the test run's own, with simulated nodes; or the cluster that LEPTON_TEST_KUBECONFIG names."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    running = start_cluster(folder)
    yield running
    stop_cluster(running)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def balancer() -> Iterator[Balancer]:
    """An HAProxy of the test run's own."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    yield start_balancer(folder)
    stop_balancer(folder)
    shutil.rmtree(folder, ignore_errors=True)


def ansible_module(module: str, arguments: dict[str, Any], *, check: bool = False, seconds: float = 280, python: str = "/usr/bin/python3") -> dict[str, Any]:
    """Run a module on this machine as Ansible does and return what it answered, with `failed`. One without a dot is of our collection.

    The arguments are data: an ad-hoc command would template them.
    """
    named = json.dumps({name: f"{{{{ given['{name}'] }}}}" for name in arguments})
    words = ["-i", ROOT / "inventories/sandbox", "here", "-m", module if "." in module else f"lepton.cloud.{module}", "-a", named]
    given = ["-e", json.dumps({"given": untrusted(arguments), "ansible_python_interpreter": python}), *(["--check"] if check else [])]
    done = ansible("ansible", [*words, *given], cwd=ROOT, env=dict(os.environ), timeout=seconds)
    return {**module_answer(done.stdout), "failed": "FAILED!" in done.stdout}


def module_answer(printed: str) -> dict[str, Any]:
    """Return what a module answered, from what `ansible` printed."""
    answer: dict[str, Any] = json.JSONDecoder().raw_decode(printed[printed.index("=> {") + 3 :])[0]
    return answer


@dataclass
class ContainerHost:
    """The engine with the modules on one side, and its own command on the other."""

    engine: Engine
    folder: Path

    def module(self, module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        where = {"engine": "docker", "engine_address": self.engine.address, "state_dir": str(self.folder)}
        return ansible_module(module, {**where, **arguments}, check=check)

    def container(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self.module("model_container", name=name, **arguments)

    def docker(self, *words: str) -> str:
        done = subprocess.run(["docker", "--host", self.engine.address, *words], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip()

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("container", "inspect", name))[0]
        return found

    def images(self) -> list[str]:
        """Return all images as ID and name; Docker lists what is of one second in any order."""
        return sorted(self.docker("images", "--all", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}").splitlines())

    def everything(self) -> str:
        """Return all that a change would show in."""
        names = self.docker("ps", "--all", "--quiet", "--no-trunc").split()
        files = sorted(str(path) for path in self.folder.rglob("*") if "locks" not in path.parts)
        found = json.loads(self.docker("container", "inspect", *names)) if names else []
        for container in found:
            container["Mounts"].sort(key=lambda mount: mount["Destination"])  # Docker lists them in any order
        return json.dumps(found) + "\n".join(files)


@pytest.fixture
def host(engine: Engine, tmp_path: Path) -> Iterator[ContainerHost]:
    host = ContainerHost(engine, tmp_path / "state")
    yield host
    for name in host.docker("ps", "--all", "--quiet").split():
        host.docker("rm", "--force", "--volumes", name)


@dataclass(frozen=True)
class SshServer:
    """A real sshd on this machine's loopback address, which stands for a managed host far away."""

    port: int
    key: Path
    known_hosts: Path
    command: Path
    user: str

    @property
    def host_vars(self) -> dict[str, Any]:
        """The inventory's connection variables of this host."""
        options = f"-o UserKnownHostsFile={self.known_hosts} -o IdentitiesOnly=yes -F none"
        return {
            "ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": self.port, "ansible_user": self.user,
            "ansible_ssh_private_key_file": str(self.key), "ansible_ssh_common_args": options, "ansible_python_interpreter": "/usr/bin/python3",
        }  # fmt: skip


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SshServer]:
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "authorized_keys").write_bytes((folder / "user.pub").read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    command = folder / "ssh"  # libvirt's URIs have no room for ssh's own options
    command.write_text(f'#!/bin/sh\nexec ssh -F none -o UserKnownHostsFile={folder}/known_hosts "$@"\n')
    command.chmod(0o700)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it; Debian's service would make it
    daemon = subprocess.Popen([shutil.which("sshd", path=SYSTEM_PATH) or "sshd", "-D", "-e", "-f", folder / "config"], stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    eventually(listens)
    yield SshServer(port, folder / "user", folder / "known_hosts", command, getpass.getuser())
    daemon.terminate()
    daemon.wait(10)
    shutil.rmtree(folder, ignore_errors=True)


PROBES = {
    # Each says when it begins and ends, so that a test sees what ran, how often, and whether at once.
    "slow": "{risk: change, rerun: safe, plan: check, locks: [probe/slow], timeout: 300}",
    "once": "{risk: change, rerun: never, plan: check, locks: [probe/once], timeout: 300}",
    "short": "{risk: change, rerun: never, plan: check, timeout: 2}",
}
ECHO_OPTIONS = "{word: {type: str, required: true}, number: {type: int, default: 1}, size: {type: str}, flag: {type: bool, default: false}, many: {type: list, elements: str}, kind: {type: str, choices: [a, b], default: a}}"  # fmt: skip  # noqa: E501


def write_probes(folder: Path, trace: Path) -> None:
    """Write operations that tests can watch: they need no host and leave a trace."""
    for verb, lepton in PROBES.items():
        script = f"echo begin >> {trace}; i=0; while [ $i -lt 300 ] && [ ! -e {trace}.go ]; do sleep 0.1; i=$((i+1)); done; echo end >> {trace}"
        tasks = f"- name: Take a while\n  ansible.builtin.command:\n    argv: [sh, -c, '{script}']\n  changed_when: true"
        write_playbook(folder, "probe", verb, tasks, lepton=lepton)
    guard = "- name: Check the arguments\n  lepton.cloud.operation:\n  register: operation\n"
    show = "- name: Show them\n  ansible.builtin.copy:\n    content: '{{ operation.arguments | to_json }}'\n    dest: '%s.echo'\n    mode: '0600'"
    write_playbook(
        folder, "probe", "echo", guard + show % trace, options=ECHO_OPTIONS, lepton="{risk: change, plan: check, kinds: {size: size}, positional: [word]}"
    )


@pytest.fixture(scope="session")
def workspace_stand() -> Iterator[Stand]:
    """The whole stand, in Socket Mode, shared by the end-to-end tests."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    with stand(folder, start_bot=False) as running:
        write_probes(running.site / "playbooks", folder / "trace")
        running.start_bot()
        yield running
    stop_stand(folder)
    shutil.rmtree(folder, ignore_errors=True)


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first true value of `condition`, or fail when it has none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"it did not become true within {seconds:g} s")
        time.sleep(0.03)
    return value

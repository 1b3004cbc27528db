# SPDX-License-Identifier: Apache-2.0
"""Running one attempt with ansible-runner: a private folder, an explicit environment, typed events, a cancel that ends all.

The interface is `execute(job, on_event, cancel)`; a warm executor would offer the same. What is worked around here is
listed in docs/decisions.md with its sources.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from ansible_runner.interface import init_runner

from lepton_ai.errors import LeptonError
from lepton_ai.masking import Mask, service_mask
from lepton_ai.runs import processes
from lepton_ai.runs.model import RunEvent, State
from lepton_ai.runs.progress import read_event

log = structlog.get_logger()
LONGEST_MASKED = 64 * 1024  # characters of one text of an event; far fewer are kept
MASKED_AT_ONCE = 256 * 1024  # bytes of output: masking holds the interpreter, and others want to be answered
SECRETS_FILE = "secrets.json"
HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)
SECRET_NAME = re.compile("pass|secret|token|credential|private|api_?key", re.IGNORECASE)
KEPT_OUTPUT = 64 * 1024 * 1024  # bytes of Ansible's own output that are kept: its end, where it is longer
# What a playbook gets of the service's environment: where programs are, who and where it is, and the ssh agent.
PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR")
NICE = ("nice", "-n", "10")  # answering people comes before work
END_SECONDS = 0.05
POLL_SECONDS = 0.2  # how soon ansible-runner sees that its child has ended


@dataclass(frozen=True)
class Job:
    """One attempt at a run. `secrets` are values that must show nowhere; `extra_environment` names variables to pass on.

    `hosts`: only these, and this machine itself; all where there are none.
    """

    run_id: str
    token: str
    playbook: Path
    inventory: Path
    arguments: Mapping[str, Any] = field(repr=False)
    check: bool
    timeout: int
    private_dir: Path
    output: Path
    collections: Path
    ansible_config: Path | None = None
    secrets: Sequence[Any] = field(default=(), repr=False)
    extra_environment: Sequence[str] = ()
    hosts: Sequence[str] = ()
    socket: Path | None = None


class Cancel:
    """Asks whatever is under way to end. Set once, it stays set; each attempt is woken through an event of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._wakes: list[threading.Event] = []

    def set(self) -> None:
        with self._lock:
            self._set = True
            for wake in self._wakes:
                wake.set()

    def is_set(self) -> bool:
        return self._set

    @contextmanager
    def waking(self, wake: threading.Event) -> Iterator[None]:
        """Set `wake` at a cancel that comes meanwhile, or has come already."""
        with self._lock:
            self._wakes.append(wake)
            if self._set:
                wake.set()
        try:
            yield
        finally:
            with self._lock:
                self._wakes.remove(wake)


def command_line(playbook: Path, inventory: Path, arguments: Mapping[str, Any], *, check: bool, hosts: Sequence[str] = ()) -> str:
    """Return the line with which a person could do the same without the bot. Secret arguments come masked already."""
    given = {name: value for name, value in arguments.items() if value is not None}
    words = ["ansible-playbook", "-i", str(inventory), str(playbook)]
    if given:
        words += ["-e", json.dumps(untrusted(given) if "{" in json.dumps(list(given.values())) else given)]
    return shlex.join([*words, *_options(hosts, check=check), *(["--diff"] if check else [])])


def _options(hosts: Sequence[str], *, check: bool) -> list[str]:
    """Return Ansible's options. Names of hosts are data and no patterns: what is not plainly a name is refused."""
    if strange := [host for host in hosts if not HOST_NAME.fullmatch(host)]:
        raise LeptonError(f"{strange[0][:80]!a} is not the name of a host")
    return [*(["--limit", ",".join(["localhost", *hosts])] if hosts else []), *(["--check"] if check else [])]


def untrusted(value: Any) -> Any:
    """Return the value with every string marked, so that Ansible never renders what somebody typed."""
    if isinstance(value, str):
        return {"__ansible_unsafe": value}
    if isinstance(value, Mapping):
        return {str(key): untrusted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [untrusted(item) for item in value]
    return value


def execute(job: Job, on_event: Callable[[RunEvent], None], cancel: Cancel) -> tuple[State, str]:
    """Run the job to its end and return its final state and, where it is no success, one sentence why.

    Blocks. Nothing of the attempt is left when it returns: no process, no private folder.
    """
    if not job.inventory.exists():  # ansible-runner would take its name for an inventory's content
        return State.FAILED, f"the inventory {job.inventory} is missing"
    ended, wake, mask = threading.Event(), threading.Event(), _mask(job)
    verdict: list[State] = []

    def watch() -> None:
        with cancel.waking(wake):
            reason = State.CANCELED if wake.wait(timeout=job.timeout) else State.TIMED_OUT
        if not ended.is_set():
            verdict.append(reason)
        # Again and again: the process may only just be starting, and not carry the token yet.
        while not ended.wait(END_SECONDS):
            processes.end_attempt(job.token)

    watcher = threading.Thread(target=watch, name=f"watch-{job.run_id}", daemon=True)
    try:
        _write_inputs(job)
        runner = init_runner(  # type: ignore[no-untyped-call]
            private_data_dir=str(job.private_dir),
            playbook=str(job.playbook),
            inventory=str(job.inventory),
            cmdline=shlex.join([*_options(job.hosts, check=job.check), "--diff"]),
            ident="attempt",
            quiet=True,
            event_handler=_guarded(job, on_event, mask),
        )
        # ansible-runner copies the whole environment of this process; what a playbook gets is ours to say.
        runner.config.env = _environment(job, runner.config.env)
        runner.config.command = [*NICE, *runner.config.command]
        watcher.start()
        status, code = runner.run()
    except Exception as error:  # an error here must become the run's end, not a run that never ends
        log.exception("ansible-runner failed", run=job.run_id)
        return State.FAILED, f"the playbook could not be run: {error}"
    finally:
        # The watcher waits for one event: an ended run wakes it through the same one as a cancel.
        ended.set()
        wake.set()
        if watcher.is_alive():
            watcher.join()
        processes.end_attempt(job.token)
        _keep_output(job, mask)
        shutil.rmtree(job.private_dir, ignore_errors=True)
    if verdict and status != "successful":
        return verdict[0], "canceled" if verdict[0] is State.CANCELED else f"not finished within {job.timeout} s"
    if status == "successful":
        return State.SUCCEEDED, ""
    return State.FAILED, _last_words(job, code)


def _write_inputs(job: Job) -> None:
    job.private_dir.mkdir(parents=True, mode=0o700)
    (job.private_dir / "ansible.cfg").write_text("[defaults]\n")  # so that no other file of the machine is read instead
    env = job.private_dir / "env"
    env.mkdir(mode=0o700)
    extra = untrusted({name: value for name, value in job.arguments.items() if value is not None})
    for name, content in (("extravars", extra), ("settings", {"pexpect_timeout": POLL_SECONDS})):
        with open(os.open(env / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file)


def _environment(job: Job, prepared: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the playbook: the few that are passed on, and what ansible-runner itself added."""
    kept = {name: os.environ[name] for name in (*PASSED_ON, *job.extra_environment) if name in os.environ}
    added = {name: value for name, value in prepared.items() if os.environ.get(name) != value}
    own = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
        "ANSIBLE_COLLECTIONS_PATH": str(job.collections),
        "ANSIBLE_CONFIG": str(job.ansible_config or job.private_dir / "ansible.cfg"),
        "ANSIBLE_HOME": str(job.private_dir / "home"),
        "ANSIBLE_LOCAL_TEMP": str(job.private_dir / "tmp"),
        "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner would turn it off
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_PIPELINING": "True",
        "PYTHONUNBUFFERED": "1",
        "LEPTON_RUN": job.run_id,
        "LEPTON_SECRETS": str(job.private_dir / SECRETS_FILE),
        processes.TOKEN_VARIABLE: job.token,
    }
    if job.socket is not None:
        own["LEPTON_SOCKET"] = str(job.socket)
    return {**kept, **added, **own}


def _mask(job: Job) -> Mask:
    """Return what hides the run's secrets, the service's own, and those variables of its environment that are secret by name."""
    named = [os.environ[name] for name in job.extra_environment if name in os.environ and SECRET_NAME.search(name)]
    return Mask([*job.secrets, *named], also=service_mask)


def _learn(job: Job, mask: Mask) -> bool:
    """Take in the inventory's secrets, which the playbook's first task leaves beside the run, and return whether it has."""
    try:
        content = (job.private_dir / SECRETS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    mask.learn(json.loads(content))  # whole: the task gives the file its name when it is written
    return True


def _masked_event(raw: Mapping[str, Any], mask: Mask) -> dict[str, Any]:
    """Return the parts of an event that are read, masked where foreign text stands in them, and not longer than that is quick."""
    data = raw.get("event_data") or {}
    shown = {name: mask(data.get(name, "")) for name in ("play", "task", "name")}
    kept = {name: data[name] for name in ("host", "ignore_errors", "task_action") if name in data}
    said = mask(_trimmed(raw.get("stdout"))) if raw.get("event") == "verbose" else ""
    return {"event": raw.get("event", ""), "stdout": said, "event_data": {**shown, **kept, "res": mask(_trimmed(data.get("res")))}}


def _trimmed(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST_MASKED]
    if isinstance(value, Mapping):
        return {key: _trimmed(item) for key, item in value.items()}
    return [_trimmed(item) for item in value] if isinstance(value, list | tuple) else value


def _guarded(job: Job, on_event: Callable[[RunEvent], None], mask: Mask) -> Callable[[dict[str, Any]], bool]:
    """Return an event handler that never raises: an exception in one would leave the run 'running' for ever."""

    learned = False

    def handle(raw: dict[str, Any]) -> bool:
        try:
            nonlocal learned
            learned = learned or _learn(job, mask)
            event = read_event(_masked_event(raw, mask))
            if event is not None:
                on_event(event)
        except Exception:
            log.exception("an event could not be handled", run=job.run_id)
        return False  # no file per event

    return handle


def _keep_output(job: Job, mask: Mask) -> None:
    try:
        with open(job.private_dir / "artifacts" / "attempt" / "stdout", "rb") as source:
            source.seek(max(0, os.fstat(source.fileno()).st_size - KEPT_OUTPUT))
            job.output.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as kept:
                while lines := source.readlines(MASKED_AT_ONCE):
                    kept.write(mask(b"".join(lines).decode("utf-8", "replace")))
    except FileNotFoundError:
        pass
    except OSError:
        log.exception("the output could not be kept", run=job.run_id)


def _last_words(job: Job, code: int | None) -> str:
    """Return why a playbook failed that reported no failed host: Ansible's own last error line."""
    try:
        lines = job.output.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith(("[ERROR]", "ERROR"))]
    text = errors[-1].removeprefix("[ERROR]: ").removeprefix("ERROR! ") if errors else ""
    return text or f"ansible-playbook ended with {code}"

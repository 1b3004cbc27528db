# SPDX-License-Identifier: Apache-2.0
"""What is here, what is missing and how to get it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ansible.release import __version__ as ansible_version

from lepton_ai.asking import ask
from lepton_ai.errors import LeptonError
from lepton_ai.paths import builtin_playbooks, collections_path
from lepton_ai.settings import Secrets, Settings, load_settings
from lepton_ai.web.client import service


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `optional`: its absence hinders only some uses."""

    what: str
    good: bool
    detail: str
    hint: str = ""
    optional: bool = False


def examine(site: Path | None) -> list[Finding]:
    """Look at everything, in the order in which it is needed."""
    findings = [
        Finding("Python", sys.version_info >= (3, 12), sys.version.split()[0], "Lepton needs Python 3.12 or later"),
        Finding("ansible-core", True, ansible_version),
        Finding("collection lepton.cloud", collections_path().is_dir(), str(collections_path())),
        Finding("built-in playbooks", builtin_playbooks().is_dir(), str(builtin_playbooks())),
    ]
    for program, package in (("ssh", "openssh-client"), ("qemu-img", "qemu-utils"), ("virsh", "libvirt-clients")):
        found = shutil.which(program)
        findings.append(
            Finding(
                program,
                found is not None,
                found or "missing",
                "" if found else f"apt-get install {package} (hosts reached by ssh need it there)",
                optional=True,
            )
        )
    try:
        settings = load_settings(site)
    except LeptonError as error:
        return [*findings, Finding("site", False, error.message, error.hint)]
    findings.append(Finding("site", True, str(settings.site)))
    catalog = settings.catalog()
    findings.append(Finding("operations", not catalog.problems, f"{len(catalog.operations)} usable", "\n    ".join(map(str, catalog.problems))))
    secrets = Secrets()
    wanted = ["slack_bot_token", "slack_app_token" if settings.slack.mode == "socket" else "slack_signing_secret"]
    missing = [name.upper() for name in wanted if getattr(secrets, name) is None]
    findings.append(
        Finding("Slack credentials", not missing, "missing: " + ", ".join(missing) if missing else "set", "see docs/slack.md" if missing else "", optional=True)
    )
    client = service(settings.socket)
    findings.append(Finding("service", client is not None, str(settings.socket) if client else "not running", "" if client else "lepton serve", optional=True))
    return findings + _hosts(settings)


def _hosts(settings: Settings) -> list[Finding]:
    """Ask every host for its capacity: that needs reach, rights and a Python with libvirt's bindings, all at once."""
    try:
        run = ask(settings, settings.catalog().find("host", "show"), {})
    except LeptonError as error:
        return [Finding("hosts", False, error.message, error.hint)]
    result = run["result"]
    findings = [
        Finding(f"host {host}", True, f"{answer['capacity']['vcpus_free']} vCPUs and {answer['capacity']['memory_free'] >> 20} MiB free")
        for host, answer in sorted(result.get("answers", {}).items())
        if "capacity" in answer
    ]
    findings += [Finding(f"host {host}", False, why) for host, why in sorted(result.get("failures", {}).items())]
    return findings or [Finding("hosts", False, run["error"] or "the inventory names none")]

# SPDX-License-Identifier: Apache-2.0
"""The tools that read the repository: linters, types, directions, Ansible's own sanity tests, packaging."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.conftest import ROOT

pytestmark = pytest.mark.checks
BIN = ROOT / ".venv" / "bin"
COLLECTION = ROOT / "collections/ansible_collections/lepton/cloud"


def run(*command: str | Path, cwd: Path = ROOT, seconds: int = 600, environment: dict[str, str] | None = None) -> str:
    """Run a tool and return what it printed; fail with all of it when it found something."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=seconds, env={**os.environ, "PATH": path, "NO_COLOR": "1", **(environment or {})}
    )
    assert done.returncode == 0, f"{command[0]}:\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "bot", "collections", "tests", "tools"),
        ("ruff", "format", "--check", "bot", "collections", "tests", "tools"),
        ("mypy",),
        ("mypy", "tools/dashboards.py"),
        ("lint-imports",),
        ("reuse", "lint", "--lines"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_linters(command: Sequence[str]) -> None:
    run(*command)


@pytest.mark.slow
def test_ansible_lint_production_profile() -> None:
    run("ansible-lint", "--offline", "playbooks", "inventories", "collections")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ansible_test_sanity() -> None:
    # ansible-test fetches a pinned get-pip from its own site. Python brings pip along, so that one is used where the
    # script is not in ansible-test's cache already; its requirements come from the package index as always.
    cached = Path.home() / ".ansible/test/cache/get_pip_25_2.py"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text("import ensurepip\n\nensurepip.bootstrap(upgrade=True)\n")
    run("ansible-test", "sanity", "--venv", "--python", f"{sys.version_info.major}.{sys.version_info.minor}", cwd=COLLECTION, seconds=1400)


@pytest.mark.slow
def test_antsibull_docs_lint() -> None:
    run("antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs", "self", ".", cwd=COLLECTION)


@pytest.mark.slow
def test_changelog_is_sound() -> None:
    run("antsibull-changelog", "lint", cwd=COLLECTION)


@pytest.mark.slow
def test_the_collection_can_be_built_and_installed_into_an_empty_place(tmp_path: Path) -> None:
    run("ansible-galaxy", "collection", "build", "--output-path", tmp_path, COLLECTION)
    (archive,) = tmp_path.glob("lepton-cloud-*.tar.gz")
    target = tmp_path / "installed"
    run("ansible-galaxy", "collection", "install", archive, "-p", target, "--offline", "--force", cwd=tmp_path)
    alone = {"ANSIBLE_COLLECTIONS_PATH": str(target), "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "False"}
    shown = run("ansible-doc", "-t", "module", "lepton.cloud.virtual_node", cwd=tmp_path, environment=alone)
    assert str(target) in shown


@pytest.mark.slow
def test_the_wheel_brings_its_playbooks_and_collection(tmp_path: Path) -> None:
    """Installed where no checkout is near, everything is found, from `/`."""
    uv = next((path for path in (ROOT / ".cache/uv/bin/uv",) if path.exists()), Path("uv"))
    run(uv, "build", "-q", "--wheel", "-o", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    venv = tmp_path / "venv"
    run(uv, "venv", "-q", "--python", sys.executable, venv)
    # The environment is the locked one; only this package comes from the wheel.
    requirements = tmp_path / "requirements.txt"
    run(uv, "export", "-q", "--locked", "--no-dev", "--no-emit-project", "--no-hashes", "-o", requirements)
    run(uv, "pip", "install", "-q", "--python", venv / "bin/python", "-r", requirements, wheel)
    root = Path("/")
    environment = {"PATH": f"{venv / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(tmp_path)}
    shown = run(venv / "bin/lepton", "operations", "--json", cwd=root, environment=environment)
    assert str(venv) in shown
    assert '"node.resize"' in shown
    site = tmp_path / "site"
    run(venv / "bin/lepton", "init", site, cwd=root, environment=environment)
    assert (site / "slack-manifest.yml").is_file()
    found = run(venv / "bin/ansible-doc", "-t", "module", "lepton.cloud.virtual_node", cwd=root, environment=environment)
    assert str(venv) in found

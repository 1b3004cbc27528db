# SPDX-License-Identifier: Apache-2.0
"""Every command in the documentation is run, in the order of the page, against the sandbox."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_ai.operations.catalog import load_catalog
from lepton_ai.paths import PACKAGE, example_inventory
from lepton_ai.sandbox.stand import Stand
from lepton_ai.settings import load_settings
from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
# These two are the test run itself, and a server that does not end; the tour that the second plays has its own test.
NOT_HERE = ("make test", "make demo")
# tests/kubernetes/test_operations.py and tests/scaling/test_backtest.py, which have what these need.
ELSEWHERE = ("deployments.md", "scaling.md")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def needing(page: Path) -> Any:
    """Return a page as a parameter of a test, with the marks of what its commands need."""
    marks = [pytest.mark.docker, pytest.mark.haproxy] if page.name in ("containers.md", "images.md", "services.md") else []
    return pytest.param(page, marks=marks)


def test_pages_link_to_what_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.libvirt
@pytest.mark.slow
@pytest.mark.parametrize("page", [needing(page) for page in PAGES if blocks(page, "sh") and page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_commands(workspace_stand: Stand, page: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "LEPTON_SITE": str(workspace_stand.site),
        "LEPTON_SANDBOX": str(workspace_stand.folder),
        "LEPTON_SANDBOX_PORT": str(workspace_stand.service_port),
    }
    # Commands that name files of the checkout run in it, others where they can leave something.
    for line in (line.partition("#")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()):
        if not line or line in NOT_HERE:
            continue
        where = ROOT if "playbooks/" in line else tmp_path
        done = subprocess.run(["bash", "-c", line], cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{page.name}: {line}\n{done.stdout}{done.stderr}"


def test_the_own_operation_of_the_guide_is_usable(tmp_path: Path) -> None:
    for block in blocks(ROOT / "docs/own-operations.md", "yaml"):
        path = tmp_path / block.splitlines()[0].removeprefix("# playbooks/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    found = load_catalog({"site": tmp_path})
    assert not found.problems
    assert found.operations["model.warm"].guarded


def test_the_settings_of_the_guide_to_alerts_are_some(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs/monitoring.md", "yaml")
    (tmp_path / "lepton.yml").write_text(block)
    (rule,) = load_settings(tmp_path).alerts
    assert (rule.throttle_minutes, rule.hours) == (60, "08:00-20:00")


def test_the_examples_of_the_specifications_are_of_their_own_operation() -> None:
    for meta in (PACKAGE.parent.parent / "playbooks").glob("*/*.meta.yml"):
        (spec,) = yaml.safe_load(meta.read_text())["argument_specs"].values()
        assert str(meta.relative_to(ROOT)).replace(".meta", "") in spec["examples"]
        assert all(option.get("description") for option in spec["options"].values())


def test_the_example_inventory_is_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-inventory", "-i", example_inventory(), "--list"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0
    assert "host3" in done.stdout

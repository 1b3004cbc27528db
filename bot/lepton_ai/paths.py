# SPDX-License-Identifier: Apache-2.0
"""Where the built-in playbooks and the collection stand: the same answer in a checkout and in an installed wheel."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def builtin_playbooks() -> Path:
    """Return the folder of the built-in playbooks: inside the package in a wheel, beside `bot/` in a checkout."""
    packaged = PACKAGE / "playbooks"
    return packaged if packaged.is_dir() else PACKAGE.parent.parent / "playbooks"


def collections_path() -> Path:
    """Return the folder that holds `ansible_collections/lepton/cloud`."""
    spec = find_spec("ansible_collections.lepton.cloud")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the collection lepton.cloud is not installed beside lepton_ai: install the whole wheel")
    return Path(next(iter(spec.submodule_search_locations))).parents[2]


def sandbox_inventory() -> Path:
    """Return the inventory of the sandbox: this machine."""
    return _inventory("sandbox")


def example_inventory() -> Path:
    """Return the commented inventory that a new site starts from."""
    return _inventory("example")


def _inventory(name: str) -> Path:
    packaged = PACKAGE / "inventories" / name
    return packaged if packaged.is_dir() else PACKAGE.parent.parent / "inventories" / name

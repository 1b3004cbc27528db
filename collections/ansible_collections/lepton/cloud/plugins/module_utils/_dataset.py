# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Data that replicas of a service read: a folder of the host, a network export, or a copy that is made once. Pure.

PRIVATE to the collection and to the Lepton bot. All replicas on a host share it, and none may write to it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Mapping

from ._changes import Change

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
PATH = re.compile(r"/[A-Za-z0-9_./-]{1,200}", re.ASCII)
EXPORT = re.compile(r"(?P<server>[A-Za-z0-9][A-Za-z0-9.-]{0,252}):(?P<path>/[A-Za-z0-9_./-]{0,200})", re.ASCII)
URL = re.compile(r"(?:https?|file)://[A-Za-z0-9._~:/?&=%@+,-]{1,500}", re.ASCII)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
KINDS = ("path", "nfs", "url")


class DatasetError(ValueError):
    """Data that cannot be had; the text says why and what to do."""


@dataclass(frozen=True)
class Dataset:
    """One set of data, and where a replica finds it (`target`). Exactly one of `path`, `nfs` and `url` is set; `url` goes with `digest`."""

    name: str
    target: str
    path: str | None = None
    nfs: str | None = None
    url: str | None = None
    digest: str | None = None

    def to_fields(self) -> dict[str, str]:
        """Return what is set, as it is written in an inventory."""
        return {field: value for field, value in asdict(self).items() if value is not None}


def read_dataset(declared: Any) -> Dataset:
    """Return a declaration, or raise DatasetError that names the field and what was expected."""
    if not isinstance(declared, Mapping):
        raise DatasetError("expected mappings such as {name: wiki, target: /data/wiki, path: /srv/wiki}")
    unknown = sorted(set(map(str, declared)) - set(Dataset.__dataclass_fields__))
    if unknown:
        raise DatasetError("there is no field %s: expected name, target and one of %s" % (ascii(unknown[0][:40])[1:-1], ", ".join(KINDS)))
    given = {str(field): str(value) for field, value in declared.items() if value is not None}
    missing = [field for field in ("name", "target") if field not in given]
    if missing:
        raise DatasetError("%s is missing" % missing[0])
    found = Dataset(**given)
    checks = (("name", NAME), ("target", PATH), ("path", PATH), ("nfs", EXPORT), ("url", URL), ("digest", DIGEST))
    for field, pattern in checks:
        value = getattr(found, field)
        if value is not None and (not pattern.fullmatch(value) or ".." in value.split("/")):
            raise DatasetError("%s: %s: %s is not what was expected there" % (found.name[:40], field, ascii(value[:80])))
    if sum(getattr(found, kind) is not None for kind in KINDS) != 1:
        raise DatasetError("%s: expected exactly one of %s" % (found.name, ", ".join(KINDS)))
    if (found.url is None) != (found.digest is None):
        raise DatasetError("%s: url and digest go together: what is copied must be what was meant" % found.name)
    return found


def mount_of(dataset: Dataset, data_dir: str) -> str:
    """Return a dataset as a container's mount, read-only."""
    if dataset.path is not None:
        return "%s:%s:ro" % (dataset.path, dataset.target)
    if dataset.nfs is not None:
        return "lepton-data-%s:%s:ro" % (dataset.name, dataset.target)
    return "%s:%s:ro" % (copy_path(dataset, data_dir), dataset.target)


def copy_path(dataset: Dataset, data_dir: str) -> str:
    """Return where the copy of a dataset stands on a host: another content is another folder, so both can be read while a service rolls."""
    return "%s/%s-%s" % (data_dir.rstrip("/"), dataset.name, str(dataset.digest).rpartition(":")[2][:12])


def nfs_options(export: str) -> dict[str, str]:
    """Return the options of an engine's volume that is a network export, mounted read-only when a container needs it."""
    found = EXPORT.fullmatch(export)
    if found is None:
        raise DatasetError("nfs: %s is not SERVER:/PATH" % ascii(export[:80]))
    return {"type": "nfs", "o": "addr=%s,ro,soft,timeo=100" % found["server"], "device": ":" + found["path"]}


def plan_dataset(dataset: Dataset, *, there: bool, volume: Mapping[str, str] | None, data_dir: str) -> list[Change]:
    """Return what is missing of a dataset on a host. `there`: its folder exists; `volume`: the options that the engine's volume has."""
    if dataset.path is not None:
        if not there:
            raise DatasetError("%s: there is no folder %s on this host, and this is where its data were to be" % (dataset.name, dataset.path))
        return []
    if dataset.nfs is not None:
        wanted = nfs_options(dataset.nfs)
        if volume is not None and dict(volume) != wanted:
            raise DatasetError("%s: the engine has a volume lepton-data-%s of another export: remove it, or choose another name" % (dataset.name, dataset.name))
        return [] if volume is not None else [Change("volume", None, dataset.nfs)]
    return [] if there else [Change("copy", None, copy_path(dataset, data_dir))]

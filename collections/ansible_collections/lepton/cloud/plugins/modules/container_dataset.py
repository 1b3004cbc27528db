#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the data of a service on a container host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_dataset
short_description: Have the data of a service on a container host
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Sees that data which replicas read are on their host. A folder must be there, an export becomes a volume of the engine, and what has
    a URL is copied once and compared with its digest.
  - Nothing is ever removed or written over. Another content has another digest, and is copied beside what is there.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.engine
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - What it is called. Up to 40 lower-case letters, digits and hyphens.
    type: str
    required: true
  target:
    description:
      - Where a replica finds it.
    type: str
    required: true
  path:
    description:
      - A folder or file of the host that must be there.
    type: str
  nfs:
    description:
      - An export, as V(SERVER:/PATH).
    type: str
  url:
    description:
      - Where the copy comes from, as C(http), C(https) or C(file). A C(.tar), C(.tar.gz) or C(.tgz) is unpacked.
    type: str
  digest:
    description:
      - The digest of what O(url) gives, as V(sha256:…).
    type: str
"""

EXAMPLES = r"""
- name: A copy of the index on this host
  lepton.cloud.container_dataset:
    name: wiki
    target: /data/wiki
    url: https://files.example.net/wiki.tar.gz
    digest: sha256:5d20c808ce198565ff70b3ed23a991dd49afac45dece63474b27ce6ed036adc6
"""

RETURN = r"""
mount:
  description: The mount that gives it to a container.
  type: str
  returned: success
  sample: /var/lib/lepton/data/wiki-5d20c808ce19:/data/wiki:ro
changes:
  description: What was missing.
  type: list
  elements: dict
  returned: success
  sample: [{field: copy, before: null, after: /var/lib/lepton/data/wiki-5d20c808ce19, effective: now}]
"""

import hashlib
import json
import os
import shutil
import tarfile
from contextlib import ExitStack
from http.client import HTTPException
from urllib.error import URLError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ..module_utils._changes import diff_of
from ..module_utils._command import clean
from ..module_utils._dataset import Dataset, DatasetError, copy_path, mount_of, nfs_options, plan_dataset, read_dataset
from ..module_utils._engine import Engine
from ..module_utils._engine_module import ENGINE_OPTIONS, data_dir, engine_of, lock_dir
from ..module_utils._host_lock import host_lock

CHUNK = 1 << 20
LOCK_SECONDS = 1800  # whoever waits needs the same copy
NET_SECONDS = 60
ARCHIVES = (".tar", ".tar.gz", ".tgz")


def volume_of(engine: Engine, dataset: Dataset) -> dict | None:
    """Return the options of a dataset's volume, None where the engine has none."""
    if dataset.nfs is None:
        return None
    ran = engine.attempt("volume", "inspect", "lepton-data-" + dataset.name)
    return None if ran.code else dict(json.loads(ran.out)[0].get("Options") or {})


def copy(dataset: Dataset, target: str) -> None:
    """Copy what a URL gives, compare it, unpack it, and give it its name when it is whole."""
    partial = target + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial, mode=0o755)
    name = os.path.basename(str(dataset.url).partition("?")[0]) or dataset.name
    file = os.path.join(partial, name)
    try:
        fetch(dataset, file)
        if name.endswith(ARCHIVES):
            unpack(file, partial, dataset.name)
            os.unlink(file)
        for folder, folders, files in os.walk(partial):
            for name in folders:
                os.chmod(os.path.join(folder, name), 0o755)  # whatever the umask: a replica is nobody in particular
            for name in files:
                os.chmod(os.path.join(folder, name), 0o644)
        os.chmod(partial, 0o755)
        os.sync()  # before it gets the name by which it counts as whole
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetch(dataset: Dataset, path: str) -> None:
    digest = hashlib.sha256()
    try:
        with open_url(dataset.url, timeout=NET_SECONDS, use_netrc=False) as answer, open(path, "wb") as file:
            for chunk in iter(lambda: answer.read(CHUNK), b""):
                digest.update(chunk)
                file.write(chunk)
    except (URLError, OSError, HTTPException) as error:
        raise DatasetError("%s: %s could not be copied: %s" % (dataset.name, dataset.url, clean(str(error)))) from error
    found = "sha256:" + digest.hexdigest()
    if found != dataset.digest:
        raise DatasetError("%s: %s gave %s, and not %s: nothing of it was kept" % (dataset.name, dataset.url, found, dataset.digest))


def unpack(path: str, folder: str, name: str) -> None:
    """Unpack an archive of files and folders; what would land elsewhere or is anything else is refused."""
    try:
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                parts = member.name.split("/")
                if not (member.isfile() or member.isdir()) or os.path.isabs(member.name) or ".." in parts:
                    raise DatasetError("%s: %s in the archive is neither a file nor a folder of its own" % (name, ascii(member.name[:100])))
                archive.extract(member, folder, set_attrs=False)
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError("%s: the archive cannot be read: %s" % (name, error)) from error


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            ENGINE_OPTIONS,
            name={"type": "str", "required": True},
            target={"type": "str", "required": True},
            path={"type": "str"},
            nfs={"type": "str"},
            url={"type": "str"},
            digest={"type": "str"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    with engine_of(module) as engine:
        dataset = read_dataset({field: params[field] for field in Dataset.__dataclass_fields__})
        home = data_dir(module)
        target = dataset.path or (copy_path(dataset, home) if dataset.url else "")
        with ExitStack() as locks:
            if not module.check_mode:
                locks.enter_context(host_lock(lock_dir(module), "data." + dataset.name, LOCK_SECONDS))
            changes = plan_dataset(dataset, there=bool(target) and os.path.exists(target), volume=volume_of(engine, dataset), data_dir=home)
            if changes and not module.check_mode:
                if dataset.nfs is not None:
                    options = ["--opt=%s=%s" % pair for pair in nfs_options(dataset.nfs).items()]
                    engine.ask("volume", "create", "--driver=local", *options, "lepton-data-" + dataset.name)
                else:
                    os.makedirs(home, mode=0o755, exist_ok=True)
                    os.chmod(home, 0o755)
                    copy(dataset, target)
        module.exit_json(changed=bool(changes), diff=diff_of(changes), changes=[change._asdict() for change in changes], mount=mount_of(dataset, home))


if __name__ == "__main__":
    main()

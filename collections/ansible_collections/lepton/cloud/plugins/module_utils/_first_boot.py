# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a new node is told at its first boot, for cloud-init: https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html

Pure but for `write_seed`. PRIVATE to the collection.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from typing import Any, Mapping

from ._local_files import Run
from ._node import NodeError

USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
KEY = re.compile(r"(?:ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+(?: [^\r\n]*)?", re.ASCII)
PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:=~_-]{0,127}", re.ASCII)
MODE = re.compile(r"0?[0-7]{3,4}", re.ASCII)
ISO_TOOLS = ("genisoimage", "xorrisofs", "mkisofs")


def check_first_boot(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return {user, ssh_keys, packages, files} if cloud-init can have it, else raise NodeError."""
    if not USER.fullmatch(wanted.get("user") or ""):
        raise NodeError("first_boot: user: %s is not a user's name: expected lower-case letters, digits, '-' or '_'" % ascii(wanted.get("user"))[:60])
    for key in wanted.get("ssh_keys") or ():
        if not KEY.fullmatch(key.strip()):
            raise NodeError("first_boot: ssh_keys: expected public keys as in authorized_keys, such as 'ssh-ed25519 AAAA…', not %s" % ascii(key[:20]))
    for package in wanted.get("packages") or ():
        if not PACKAGE.fullmatch(package):
            raise NodeError("first_boot: packages: %s is not a package's name" % ascii(package[:60]))
    for file in wanted.get("files") or ():
        if not os.path.isabs(file["path"]) or not MODE.fullmatch(file["mode"]):
            raise NodeError("first_boot: files: expected an absolute path and a mode such as '0644', not %s and %s" % (ascii(file["path"])[:60], file["mode"]))
    return wanted


def user_data(wanted: Mapping[str, Any]) -> str:
    """Return cloud-init's own description. JSON is YAML, and quotes what it is given."""
    user = {
        "name": wanted["user"],
        "ssh_authorized_keys": [key.strip() for key in wanted.get("ssh_keys") or ()],
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
    }
    files = [{"path": file["path"], "content": file["content"], "permissions": file["mode"]} for file in wanted.get("files") or ()]
    # Its own name resolves without a DNS, which sudo asks for each time.
    told: dict[str, Any] = {"users": [user], "ssh_pwauth": False, "disable_root": True, "manage_etc_hosts": "localhost"}
    if wanted.get("packages"):
        told.update(package_update=True, packages=list(wanted["packages"]))
    if files:
        told["write_files"] = files
    return "#cloud-config\n" + json.dumps(told, indent=1) + "\n"


def write_seed(run: Run, path: str, name: str, wanted: Mapping[str, Any]) -> None:
    """Write the disk that tells a node at its first boot; whole or not at all, and for nobody else to read."""
    tool = next((tool for tool in ISO_TOOLS if shutil.which(tool)), None)
    if tool is None:
        raise NodeError("what a node is told at its first boot is written by one of %s, and this host has none: install genisoimage" % ", ".join(ISO_TOOLS))
    folder = os.path.join(os.path.dirname(path), ".seed-" + name)
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
    os.mkdir(folder, 0o700)
    try:
        for file, text in (
            ("user-data", user_data(wanted)),
            ("meta-data", json.dumps({"instance-id": str(uuid.uuid4()), "local-hostname": name}) + "\n"),
        ):
            with open(os.path.join(folder, file), "w", encoding="utf-8") as target:
                target.write(text)
        seed = os.path.join(folder, "seed.iso")
        with open(seed, "xb"):
            os.chmod(seed, 0o600)
        files = [os.path.join(folder, file) for file in ("user-data", "meta-data")]
        code, _out, trouble = run([tool, "-quiet", "-output", seed, "-volid", "cidata", "-joliet", "-rock", *files])
        if code:
            raise NodeError("%s could not write what the node is told at its first boot: %s" % (tool, trouble.strip()[-300:]))
        os.replace(seed, path)
    finally:
        shutil.rmtree(folder)

#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Push an image to a registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_image_registry
short_description: Push an image to a registry
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Brings an image of this host to a registry. What the registry has under that name is asked first, so a second push changes nothing.
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
      - The image.
    type: str
    required: true
  registry:
    description:
      - The registry, and a path in it, that the image's name is put behind, such as V(registry.example.net/team). Where it is not given,
        O(name) names it itself.
    type: str
  username:
    description:
      - Who pushes.
    type: str
  password:
    description:
      - That user's password or token.
    type: str
"""

EXAMPLES = r"""
- name: To the team's registry
  lepton.cloud.model_image_registry:
    name: models/sentiment:3
    registry: registry.example.net
    username: builder
    password: "{{ lepton_registries['registry.example.net'].password }}"
"""

RETURN = r"""
image:
  description: The image's name in the registry.
  type: str
  returned: success
  sample: registry.example.net/models/sentiment:3
changes:
  description: What the registry has under that name, before and after.
  type: list
  elements: dict
  returned: success
  sample: [{field: image, before: null, after: "sha256:5d20c808", effective: now}]
"""

import base64
import json
import os
import tempfile
from contextlib import contextmanager
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import Change, diff_of
from ..module_utils._command import clean
from ..module_utils._container import ContainerError, check_image
from ..module_utils._engine import Engine
from ..module_utils._engine_module import ENGINE_OPTIONS, engine_of
from ..module_utils._image_store import TRANSFER_SECONDS

MISSING = ("no such manifest", "manifest unknown", "not found", "name unknown", "repository name not known")


@contextmanager
def signed_in(params: dict[str, Any], registry: str) -> Iterator[list[str]]:
    """Yield the options under which the engine's command is who pushes. The password stands in a file that only we may read."""
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        auth = base64.b64encode(("%s:%s" % (params["username"], params["password"])).encode()).decode()
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            names = [registry, "https://index.docker.io/v1/"] if registry == "docker.io" else [registry]  # what Docker itself calls it by
            json.dump({"auths": {name: {"auth": auth} for name in names} if params["username"] else {}}, file)
        yield ["--config", folder]


def known(engine: Engine, options: list[str], target: str, registry: str) -> tuple[str | None, set[str]]:
    """Return what a registry has under a name: its identity to show, and all that the same image may be called by."""
    insecure = ["--insecure"] if registry.partition(":")[0] in ("localhost", "127.0.0.1") else []  # as Docker itself takes it
    ran = engine.attempt(*options, "manifest", "inspect", "--verbose", *insecure, target)
    if ran.code:
        if any(word in ran.trouble.lower() for word in MISSING):
            return None, set()
        raise ContainerError("the registry %s could not be asked for %s: %s" % (registry, target, clean(ran.trouble).strip()[-400:]))
    found = json.loads(ran.out)
    if not isinstance(found, dict):
        return "an index of several images", set()
    manifest = found.get("SchemaV2Manifest") or found.get("OCIManifest") or {}
    config = str((manifest.get("config") or {}).get("digest"))
    # An image is called by its configuration's digest, or, in containerd's store, by its manifest's.
    return config, {config, str((found.get("Descriptor") or {}).get("digest"))}


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            ENGINE_OPTIONS,
            name={"type": "str", "required": True},
            registry={"type": "str"},
            username={"type": "str"},
            password={"type": "str", "no_log": True},
        ),
        required_together=[("username", "password")],
        supports_check_mode=True,
    )
    params = module.params
    with engine_of(module) as engine:
        if engine.kind != "docker":
            raise ContainerError("images are pushed with Docker, and this host has %s: move the image to a host with Docker first" % engine.kind)
        name = check_image(params["name"])
        target = name if params["registry"] is None else check_image(params["registry"] + "/" + name)
        registry = target.partition("/")[0]
        if "/" not in target or not ("." in registry or ":" in registry or registry == "localhost"):
            raise ContainerError("%s names no registry: give one, such as registry.example.net" % target)
        image = engine.image(name)
        if image is None:
            raise ContainerError("there is no image %s on this host" % name)
        with signed_in(params, registry) as options:
            before, same = known(engine, options, target, registry)
            changes = [] if image["Id"] in same else [Change("image", before, image["Id"])]
            if changes and not module.check_mode:
                engine.ask("tag", name, target)
                try:
                    ran = engine.attempt(*options, "push", "--quiet", target, seconds=TRANSFER_SECONDS)
                    if ran.code:
                        raise ContainerError("%s was not pushed: %s" % (target, clean(ran.trouble or ran.out).strip()[-600:]))
                finally:
                    if target != name:
                        engine.attempt("rmi", target)
        module.exit_json(changed=bool(changes), diff=diff_of(changes), changes=[change._asdict() for change in changes], image=target)


if __name__ == "__main__":
    main()

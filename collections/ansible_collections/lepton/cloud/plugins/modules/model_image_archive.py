#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move an image between hosts without a registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_image_archive
short_description: Move an image between hosts without a registry
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - V(saved) fetches an image from a host into a file where C(ansible-playbook) runs, V(loaded) brings such a file to a host.
  - Layers that every host it goes to has already are left out, where their engines can do without.
  - What arrives is compared with what was sent, by the image's digest.
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
    details: V(saved) changes nothing on the host, so it is never a change.
options:
  name:
    description:
      - The image.
    type: str
    required: true
  id:
    description:
      - The image's identity, as C(container_host_info) says it. What has another one is not moved.
    type: str
    required: true
  state:
    description:
      - Whether to fetch it from this host, or to bring it here.
    type: str
    choices: [saved, loaded]
    required: true
  archive:
    description:
      - The file, where C(ansible-playbook) runs.
    type: path
    required: true
  without:
    description:
      - Layers to leave out, by their chain IDs. C(container_host_info) says which ones a host has.
    type: list
    elements: str
    default: []
  layers:
    description:
      - The layers that it must have when it has arrived, as V(saved) told them.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Fetch it from where it was built
  lepton.cloud.model_image_archive:
    name: models/sentiment:3
    id: sha256:5d20c808ce198565ff70b3ed23a991dd49afac45dece63474b27ce6ed036adc6
    state: saved
    archive: /tmp/sentiment.tar
  register: saved

- name: Bring it here
  lepton.cloud.model_image_archive:
    name: models/sentiment:3
    id: sha256:5d20c808ce198565ff70b3ed23a991dd49afac45dece63474b27ce6ed036adc6
    state: loaded
    archive: /tmp/sentiment.tar
    layers: "{{ hostvars.host1.saved.layers }}"
"""

RETURN = r"""
changes:
  description: The image that the host has afterwards, in place of what.
  type: list
  elements: dict
  returned: success
  sample: [{field: image, before: null, after: "sha256:5d20c808", effective: now}]
path:
  description: The file on the host.
  type: str
  returned: when O(state=saved)
  sample: /var/lib/lepton/model_images/transfer/5d20c808/image.tar
layers:
  description: The layers of the image, by diff ID.
  type: list
  elements: str
  returned: when O(state=saved)
  sample: ["sha256:5d20c808"]
size:
  description: Bytes that are moved.
  type: int
  returned: when O(state=saved)
  sample: 20480
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import Change, diff_of
from ..module_utils._container import ContainerError, check_image
from ..module_utils._engine import Engine
from ..module_utils._engine_module import ENGINE_OPTIONS, engine_of, lock_dir
from ..module_utils._host_lock import host_lock
from ..module_utils._image import chain_ids
from ..module_utils._image_store import layers_of, load, room_for, save
from ..module_utils._layers import SavedImage, write_archive

LOCK_SECONDS = 600


def saved(module: AnsibleModule, engine: Engine, folder: str) -> None:
    """Write the image, without what is known where it goes, into a file that the connection's user may read."""
    params = module.params
    name, identity = check_image(params["name"]), params["id"]
    image = engine.image(name)
    if image is None or image["Id"] != identity:
        raise ContainerError("%s on this host is %s, and not %s: ask again" % (name, "not there" if image is None else image["Id"], identity))
    room_for(os.path.dirname(folder), 2 * int(image.get("Size") or 0))
    os.mkdir(folder, 0o700)
    whole, path = os.path.join(folder, "whole.tar"), os.path.join(folder, "image.tar")
    try:
        save(engine, name, whole)
        with SavedImage(whole) as archive:
            chains = chain_ids(archive.diff_ids)
            without = set(params["without"])
            if without & set(chains):
                write_archive(path, name, archive.config, archive.layers_without(without, chains))
            else:
                os.rename(whole, path)  # as the engine itself wrote it
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if os.path.exists(whole):
        os.unlink(whole)
    # With become, the connection's own user fetches what root wrote. sudo says who that is. The file first: then nobody else has been
    # able to change what its name means.
    owner = int(os.environ.get("SUDO_UID") or os.getuid())
    os.chown(path, owner, -1, follow_symlinks=False)
    os.chmod(path, 0o600)
    os.chown(folder, owner, -1, follow_symlinks=False)
    module.exit_json(changed=False, changes=[], path=path, size=os.path.getsize(path), layers=layers_of(image))


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            ENGINE_OPTIONS,
            name={"type": "str", "required": True},
            id={"type": "str", "required": True},
            state={"type": "str", "choices": ["saved", "loaded"], "required": True},
            archive={"type": "path", "required": True},
            without={"type": "list", "elements": "str", "default": []},
            layers={"type": "list", "elements": "str", "default": []},
        ),
        supports_check_mode=True,
    )
    params = module.params
    home = os.path.join(params["state_dir"], "model_images", "transfer")
    folder = os.path.join(home, os.path.basename(params["id"].rpartition(":")[2])[:16])
    with engine_of(module) as engine:
        if params["state"] == "saved":
            if module.check_mode:
                module.exit_json(changed=False, changes=[])
            with host_lock(lock_dir(module), "image-transfer", LOCK_SECONDS):
                shutil.rmtree(home, ignore_errors=True)  # what was cut short, too
                for path in (params["state_dir"], os.path.dirname(home), home):
                    os.makedirs(path, mode=0o711, exist_ok=True)
                    os.chmod(path, os.stat(path).st_mode | 0o111)  # whatever the umask: the connection's user must get through
                saved(module, engine, folder)
        found = engine.image(check_image(params["name"]))
        before = None if found is None else found["Id"]
        changes = [] if before == params["id"] else [Change("image", before, params["id"])]
        if changes and not module.check_mode:
            with host_lock(lock_dir(module), "image." + params["name"].replace("/", "_"), LOCK_SECONDS):
                load(engine, params["archive"], params["name"], params["layers"])
        module.exit_json(changed=bool(changes), diff=diff_of(changes), changes=[change._asdict() for change in changes])


if __name__ == "__main__":
    main()

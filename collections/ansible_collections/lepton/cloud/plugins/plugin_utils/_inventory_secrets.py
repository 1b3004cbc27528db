# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whoever runs a playbook which values of its inventory are secret, so that they show nowhere. PRIVATE to the collection."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Iterator, Mapping

from ansible.parsing.vault import VaultHelper

SECRET_NAME = re.compile("pass|secret|token|credential|private|api_?key", re.IGNORECASE)
FILES = re.compile("_file$|_path$|ssh_private_key")  # names of files, which are no secrets


def leave_secrets(path: str | None, hostvars: Any) -> None:
    """Write the secret values of an inventory into a private file. Without a path nobody asked for them."""
    if not path:
        return
    found = sorted({text for host in hostvars for text in secret_values(hostvars[host])})
    partial = path + ".partial"
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(found, file)
    os.replace(partial, path)


def secret_values(value: Any, named: bool = False) -> Iterator[str]:
    """Yield what is secret by its name or by Ansible Vault, wherever in the variables it stands."""
    if isinstance(value, Mapping):
        for name in value:
            try:
                item = value[name]
            except Exception:  # what cannot be templated here cannot be shown either, and is not this task's to complain of
                continue
            yield from secret_values(item, named or bool(SECRET_NAME.search(str(name)) and not FILES.search(str(name))))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secret_values(item, named)
    elif isinstance(value, str) and (named or is_vaulted(value)):
        yield str(value)
    elif named and isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)


def is_vaulted(value: str) -> bool:
    """Return whether Ansible Vault kept this value; ansible-core 2.19 and later mark what they decrypt."""
    return VaultHelper.get_ciphertext(value, with_tags=False) is not None

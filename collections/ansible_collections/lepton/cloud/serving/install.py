# SPDX-License-Identifier: Apache-2.0
"""Install pinned wheels into a folder, with the Python of the image they are for, and say what was installed.

Runs in a container of the base image, as `python3 install.py OUT TARGET LIST…`: OUT is the folder, TARGET what it will be called in
the image. Standard library only, Python 3.9 or later. Writes OUT.json: [{name, version, licence, size}], sizes in bytes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

PIP_WHEELS = "/lepton/wheels"  # the host's, for a base image without pip


def main(out: str, target: str, *lists: str) -> None:
    environment = dict(os.environ)
    if importlib.util.find_spec("pip") is None:
        wheels = sorted(name for name in os.listdir(PIP_WHEELS) if name.startswith("pip-")) if os.path.isdir(PIP_WHEELS) else []
        if not wheels:
            sys.exit("the base image has no pip, and the host has none to lend: install python3-pip-whl on the host, or take another base")
        environment["PYTHONPATH"] = os.path.join(PIP_WHEELS, wheels[-1])
    # Wheels only, and only those whose hashes are listed: nothing is compiled, so no compiler is needed and none is left behind.
    pip = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--root-user-action=ignore", "--no-warn-script-location"]
    pip += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--no-compile", "--target", out]
    for name in lists:
        pip += ["--requirement", name]
    subprocess.run([sys.executable, *pip], env=environment, check=True)
    # One process and hashes in place of times, so that the same inputs give the same bytes.
    compiling = ["-m", "compileall", "-q", "-s", out, "-p", target, "--invalidation-mode", "unchecked-hash", out]
    # Some packages carry templates that look like Python and are none; nobody imports them.
    subprocess.run([sys.executable, *compiling], env={**environment, "PYTHONHASHSEED": "0"}, check=False, stdout=subprocess.DEVNULL)
    found = [told(distribution) for distribution in importlib.metadata.distributions(path=[out])]
    with open(out + ".json", "w", encoding="utf-8") as file:
        json.dump(sorted(found, key=lambda item: item["name"].lower()), file)


def told(distribution: importlib.metadata.Distribution) -> dict[str, str | int]:
    """Return what a bill of materials says of a distribution."""
    data = distribution.metadata
    licence = data.get("License-Expression") or next(
        (line.rpartition(" :: ")[2] for line in data.get_all("Classifier") or () if line.startswith("License ::")), ""
    )
    files = (distribution.locate_file(file) for file in distribution.files or ())
    size = sum(os.path.getsize(str(file)) for file in files if os.path.isfile(str(file)))
    return {"name": data["Name"], "version": distribution.version, "licence": licence, "size": size}


if __name__ == "__main__":
    main(*sys.argv[1:])

# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a model's image is made of, whether one must be built, and what it says of itself: pure.

PRIVATE to the collection. Sizes are bytes. An image has the layers of its base, and upon them at most four of ours: requirements,
server, model, bill of materials; the dear ones come first, so that another version of a model shares them.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Mapping, NamedTuple, Sequence

from ._changes import Change
from ._container import ContainerError, Spec, check_image, check_spec, shown
from ._units import format_size

BUILD_LABEL = "cloud.lepton.build"  # the recipe that an image was built from
HOME = "/opt/lepton"
SITE, SERVER, MODEL = (HOME + "/" + name for name in ("site", "server", "model"))
SBOM = "sbom.cdx.json"  # below HOME
EPOCH = "1970-01-01T00:00:00Z"  # a build's own time would make every build another image
# What a framework's server is called, what its model's file is called, and what else must stand beside it.
FRAMEWORKS = {
    "onnx": ("onnx_server", "model.onnx", ()),
    "pytorch": ("torchscript_server", "model.pt", ("signature.json",)),
    "tensorflow": ("tensorflow_server", "saved_model.pb", ()),
    "command": ("", "", ()),
}
# Files that people keep secrets in. An image goes to registries and other hosts, and nothing gets out of it again.
SECRET_FILE = re.compile(
    r"\.env(\..*)?|\.netrc|\.pgpass|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|key|p12|pfx|keytab)|credentials(\.\w+)?|\.git-credentials|\.pypirc"
)
LEFT_OUT = frozenset({".git", "__pycache__", ".DS_Store", ".ipynb_checkpoints"})
COSTLIEST = 5


class Recipe(NamedTuple):
    """Everything that an image is made of. `source`, `requirements` and `server` are digests of content, `base_id` is the base's identity."""

    model: str
    version: str
    framework: str
    base: str
    base_id: str
    source: str
    requirements: str
    server: str
    licence: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    port: int
    user: str

    def to_json(self) -> str:
        return json.dumps(self._asdict(), sort_keys=True, separators=(",", ":"))


class Layer(NamedTuple):
    """A layer: what it is called, the digest of its content (diff ID), its size, where its archive stands on this host."""

    name: str
    diff_id: str
    size: int
    path: str


def read_recipe(label: str | None) -> Recipe | None:
    """Return the recipe that an image was built from, None for one that was built otherwise."""
    try:
        found = json.loads(label or "")
        values = {field: found[field] for field in Recipe._fields}
    except (ValueError, TypeError, KeyError):
        return None
    values["command"] = tuple(values["command"])
    values["environment"] = tuple((str(name), str(value)) for name, value in values["environment"])
    return Recipe(**values)


def check_recipe(name: str, recipe: Recipe) -> Recipe:
    """Return the recipe if an image can be made of it, else raise ContainerError that names the field and what was expected."""
    check_image(name)
    if "@" in name or ":" not in name.rpartition("/")[2]:
        raise ContainerError("%s has no tag: an image is built as NAME:TAG, such as models/%s:1" % (name, recipe.model))
    check_image(recipe.base)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", recipe.model, re.ASCII):
        raise ContainerError("model: %s is not a name of letters, digits, '_', '.' and '-'" % ascii(recipe.model[:60]))
    if recipe.framework not in FRAMEWORKS:
        raise ContainerError("framework: expected one of %s, not %s" % (", ".join(FRAMEWORKS), ascii(recipe.framework[:40])))
    if (recipe.framework == "command") != bool(recipe.command):
        raise ContainerError("command: framework 'command' needs one, and every other framework brings its own")
    if recipe.user.partition(":")[0] in ("", "0", "root"):
        raise ContainerError("user: a model's server does not run as root: expected a number such as 65532")
    # The rules for a container's variables and port are the rules for an image's: no secrets above all.
    check_spec(Spec(name, environment=recipe.environment, user=recipe.user, ports=("127.0.0.1:20000:%d" % recipe.port,)))
    return recipe


def differences(recipe: Recipe, found: Recipe | None) -> list[Change]:
    """Return the fields in which what is wanted differs from what an image was built from. None of them: nothing is to be built."""
    wanted, built = recipe._asdict(), {} if found is None else found._asdict()
    differing = ((name, built.get(name), value) for name, value in wanted.items() if value != built.get(name) and (built.get(name) or value))
    return [Change(name, _told(before), _told(after)) for name, before, after in differing]


def _told(value: Any) -> Any:
    return value[:19] if isinstance(value, str) and value.startswith("sha256:") else shown(value)


def run_as(recipe: Recipe) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment that serve the model."""
    environment = {"PYTHONPATH": "%s:%s" % (SITE, SERVER), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "HTTP_PORT": str(recipe.port)}
    environment["MODEL_NAME"] = recipe.model
    server, file, beside = FRAMEWORKS[recipe.framework]
    if recipe.framework == "tensorflow":
        environment["MODEL_FILE"] = MODEL  # a SavedModel is a folder
    elif file:
        environment["MODEL_FILE"] = MODEL + "/" + file
    if "signature.json" in beside:
        environment["MODEL_SIGNATURE"] = MODEL + "/signature.json"
    environment.update(recipe.environment)
    return (list(recipe.command) or ["python3", "-m", server]), environment


def image_config(recipe: Recipe, base: Mapping[str, Any], layers: Sequence[Layer]) -> bytes:
    """Return an image's configuration, which by its digest is the image's identity. `base` is what the engine says of the base image.

    See https://github.com/opencontainers/image-spec/blob/main/config.md
    """
    own = base.get("Config") or {}
    command, environment = run_as(recipe)
    inherited = dict(item.partition("=")[::2] for item in own.get("Env") or ())
    labels = {
        **(own.get("Labels") or {}),
        "org.opencontainers.image.title": recipe.model,
        "org.opencontainers.image.version": recipe.version,
        "org.opencontainers.image.licenses": recipe.licence,
        "org.opencontainers.image.base.name": recipe.base,
        "cloud.lepton.model": recipe.model,
        "cloud.lepton.framework": recipe.framework,
        "cloud.lepton.source": recipe.source,
        BUILD_LABEL: recipe.to_json(),
    }
    below = list(base["RootFS"]["Layers"])
    config = {
        "architecture": base["Architecture"],
        "os": base["Os"],
        "created": EPOCH,
        "config": {
            "User": recipe.user,
            "WorkingDir": MODEL,
            "Env": ["%s=%s" % pair for pair in sorted({**inherited, **environment}.items())],
            "Cmd": command,
            "ExposedPorts": {"%d/tcp" % recipe.port: {}},
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": below + [layer.diff_id for layer in layers]},
        "history": [{"created": EPOCH, "created_by": "base %s" % recipe.base}] * len(below)
        + [{"created": EPOCH, "created_by": layer.name} for layer in layers],
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def image_id(config: bytes) -> str:
    return "sha256:" + hashlib.sha256(config).hexdigest()


def check_budget(name: str, budget: int, base: Mapping[str, Any], layers: Sequence[Layer], distributions: Sequence[Mapping[str, Any]]) -> int:
    """Return an image's size; raise ContainerError for one above its budget, with what costs most."""
    parts = [(int(base.get("Size") or 0), "base"), *((layer.size, layer.name) for layer in layers)]
    size = sum(part for part, _name in parts)
    if size > budget:
        dear = ", ".join("%s %s" % (part_name, format_rounded(part)) for part, part_name in sorted(parts, reverse=True))
        heavy = sorted(((int(item["size"]), str(item["name"])) for item in distributions), reverse=True)[:COSTLIEST]
        told = "; the heaviest requirements are %s" % ", ".join("%s %s" % (item, format_rounded(part)) for part, item in heavy) if heavy else ""
        raise ContainerError("%s would be %s, above its size_budget of %s: %s%s" % (name, format_rounded(size), format_size(budget), dear, told))
    return size


def format_rounded(size: int) -> str:
    """Return a size for people, whole in the largest unit that fits."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return "%.3g %s" % (size / factor, unit) if size < 100 * factor else "%d %s" % (size // factor, unit)
    return "%d B" % size


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return what identifies each layer together with all below it, as engines keep them.

    See https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    """
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(diff_id if not found else "sha256:" + hashlib.sha256(("%s %s" % (found[-1], diff_id)).encode()).hexdigest())
    return found

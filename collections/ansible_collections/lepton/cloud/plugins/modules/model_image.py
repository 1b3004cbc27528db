#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Package a model with its server as a container image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_image
short_description: Package a model with its server as a container image
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Builds an image from a model's files, a base image and pinned requirements, on a container host.
  - The same inputs give the same image. What was built from them already is not built again.
  - An image gets its name only after a container of it became ready, and answered C(example.json) where the model has one.
  - It runs as a user without rights, holds no build tools of ours, says by labels what it is made of, and carries a bill of materials
    (CycloneDX) as C(/opt/lepton/sbom.cdx.json).
  - The server speaks the Open Inference Protocol (V2) and has Prometheus metrics at C(/metrics).
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.engine
attributes:
  check_mode:
    support: full
    details: A base image that the host does not have is not pulled, so nothing is known of it yet.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - The image to build, as C([REGISTRY/]NAME:TAG).
    type: str
    required: true
  state:
    description:
      - V(present) builds it, V(absent) removes it. One that a container was made from, or that was not built by Lepton, is not removed.
    type: str
    choices: [present, absent]
    default: present
  model:
    description:
      - What the model is called in requests. The last part of O(name) where it is not given.
    type: str
  version:
    description:
      - The model's version. The tag of O(name) where it is not given.
    type: str
  framework:
    description:
      - V(onnx) serves C(model.onnx), V(tensorflow) a SavedModel, V(pytorch) the TorchScript file C(model.pt) whose tensors stand in C(signature.json).
      - V(command) is whatever O(command) starts.
      - The base image of V(pytorch) brings PyTorch, or O(requirements) does, so that nobody gets gigabytes of CUDA without asking.
    type: str
    choices: [onnx, pytorch, tensorflow, command]
  source:
    description:
      - The model's folder on the host, or its one file. Needed to build. C(example.json) in it is a request that must be answered.
    type: path
  base:
    description:
      - The image that it is built upon. Needs a C(python3), unless there is nothing to install.
    type: str
    default: python:3.12-slim-bookworm
  requirements:
    description:
      - A file on the host with further Python requirements, each pinned and with hashes, as C(pip-compile --generate-hashes) or
        C(uv pip compile --generate-hashes) write it. Wheels only.
    type: path
  licence:
    description:
      - The model's licence, as an SPDX expression.
    type: str
    default: ""
  command:
    description:
      - What is started, for O(framework=command). It runs in the model's folder, C(/opt/lepton/model).
    type: list
    elements: str
    default: []
  environment:
    description:
      - Environment variables of the server. They cannot hold secrets, which a container is given as files when it starts.
    type: dict
    default: {}
  port:
    description:
      - The port that the server listens on.
    type: int
    default: 8080
  user:
    description:
      - The user, and the group after a colon, that the server runs as.
    type: str
    default: "65532:65532"
  health_path:
    description:
      - The path that answers 2xx when the model can serve.
    type: str
    default: /v2/health/ready
  size_budget:
    description:
      - How large the image may be. A larger one is refused, with what costs most.
    type: str
    default: 4GiB
  wait_seconds:
    description:
      - How long its trial may take to become ready.
    type: int
    default: 120
  memory:
    description:
      - How much memory its trial may use, with its unit. Half of what the host may still give where it is not given.
    type: str
  serving:
    description:
      - The server and its requirements. The action plugin brings them along; they are not for playbooks.
    type: dict
    default: {}
  sbom:
    description:
      - The bill of materials. The action plugin makes it; it is not for playbooks.
    type: str
seealso:
  - module: lepton.cloud.model_image_archive
  - module: lepton.cloud.model_image_registry
"""

EXAMPLES = r"""
- name: An ONNX model
  lepton.cloud.model_image:
    name: models/sentiment:3
    framework: onnx
    source: /srv/models/sentiment
    licence: Apache-2.0
    size_budget: 600MiB

- name: Any server
  lepton.cloud.model_image:
    name: models/echo:1
    framework: command
    source: /srv/models/echo
    command: [python3, server.py]
"""

RETURN = r"""
image:
  description: The image after the change, or as it is in check mode. Null when there is none.
  type: dict
  returned: success
  sample: {name: "models/sentiment:3", id: "sha256:5d20c808", size: 402653184, model: sentiment, version: "3", framework: onnx}
changes:
  description: The inputs that differ from those that the image was built from.
  type: list
  elements: dict
  returned: success
  sample: [{field: source, before: "sha256:aa", after: "sha256:bb", effective: now}]
layers:
  description: The layers that were built, with their sizes in bytes.
  type: list
  elements: dict
  returned: when it was built
  sample: [{name: requirements, size: 396361728}]
start_seconds:
  description: How long the trial took to become ready.
  type: float
  returned: when it was built
  sample: 1.8
"""

import hashlib
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import Change, diff_of
from ..module_utils._container import ContainerError, check_image
from ..module_utils._engine import Engine, ports_in_use
from ..module_utils._engine_module import ENGINE_OPTIONS, engine_of, lock_dir
from ..module_utils._host_lock import host_lock
from ..module_utils._image import FRAMEWORKS, MODEL, Recipe, check_budget, check_recipe, differences
from ..module_utils._image_build import CANDIDATE, base_packages, bring_in, clear_trials, forget_layers, own_layers, requirements_layer, try_out, work_folder
from ..module_utils._image_store import image_result, recipe_of, users_of
from ..module_utils._layers import text_digest, tree_digest
from ..module_utils._ports import free_ports, listening_ports
from ..module_utils._units import parse_size

LOCK_SECONDS = 3600  # a build takes minutes, and those of one host share their layers, so they wait for each other


def requirement_lists(params: dict[str, Any]) -> dict[str, str]:
    """Return the requirement lists of an image by name: the server's own, and the model's."""
    lists = {"server.txt": params["serving"]["requirements"]} if params["serving"].get("requirements") else {}
    if params["requirements"]:
        path = os.path.join(params["source"], params["requirements"])
        try:
            with open(path, encoding="utf-8") as file:
                lists["model.txt"] = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ContainerError("requirements: %s cannot be read: %s" % (path, error)) from error
    return lists


def model_target(params: dict[str, Any]) -> str:
    """Return what the source is called in the image; raise ContainerError where it lacks what its framework needs."""
    source, (_server, file, beside) = params["source"], FRAMEWORKS[params["framework"]]
    if not os.path.exists(source):
        raise ContainerError("source: there is no %s on this host" % source)
    if os.path.isfile(source):
        if beside or file == "saved_model.pb":
            raise ContainerError("source: %s needs a folder with %s" % (params["framework"], " and ".join((file, *beside))))
        return "%s/%s" % (MODEL, file or os.path.basename(source))
    for name in (file, *beside) if file else ():
        if not os.path.isfile(os.path.join(source, name)):
            raise ContainerError("source: %s has no %s, which %s serves" % (source, name, params["framework"]))
    return MODEL


def recipe_for(engine: Engine, params: dict[str, Any], found: Recipe | None) -> Recipe:
    """Return what the image is to be made of; raise ContainerError for what cannot be built."""
    name = check_image(params["name"])
    if not params["framework"] or not params["source"]:
        raise ContainerError("to build %s, framework and source are needed" % name)
    if not os.path.isabs(params["source"]):
        raise ContainerError("source: %s is not an absolute path" % ascii(params["source"][:100]))
    short, _colon, tag = name.rpartition("/")[2].partition(":")
    base = engine.image(check_image(params["base"]))
    # A base that is not here can be no other than before.
    base_id = base["Id"] if base is not None else found.base_id if found is not None and found.base == params["base"] else ""
    lists = requirement_lists(params)
    recipe = Recipe(
        model=params["model"] or short,
        version=params["version"] or tag,
        framework=params["framework"],
        base=params["base"],
        base_id=base_id,
        source="",
        requirements=text_digest(lists) if lists else "",
        server=text_digest(params["serving"].get("files") or {}),
        licence=params["licence"],
        command=tuple(params["command"]),
        environment=tuple(sorted((str(key), str(value)) for key, value in params["environment"].items())),
        port=params["port"],
        user=params["user"],
    )
    check_recipe(name, recipe)
    return recipe._replace(source=tree_digest(params["source"], model_target(params)))


def example_of(params: dict[str, Any]) -> str | None:
    """Return the request that the model must answer, None where it has none."""
    path = os.path.join(params["source"], "example.json")
    if params["framework"] == "command" or not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()


def build(module: AnsibleModule, engine: Engine, recipe: Recipe) -> dict[str, Any]:
    """Build the image and return what was made; without a bill of materials only what one is made from."""
    params, name = module.params, module.params["name"]
    lists = requirement_lists(params)
    base = engine.image(recipe.base)
    if base is None:
        raise AssertionError("the base was pulled")
    clear_trials(engine)
    with work_folder(params["state_dir"], name) as work:
        layer, distributions = None, []
        if lists:
            layer, distributions = requirements_layer(engine, recipe, lists, params["serving"]["installer"], params["state_dir"], work)
        if params["sbom"] is None:
            return {"components": {"distributions": distributions, "packages": base_packages(engine, recipe, work), "recipe": recipe._asdict()}}
        layers = own_layers(layer, params["serving"].get("files") or {}, params["source"], model_target(params), params["sbom"], work)
        check_budget(name, parse_size(params["size_budget"]), base, layers, distributions)
        if next(layer.diff_id for layer in layers if layer.name == "model") != recipe.source:
            raise ContainerError("%s was not built: the files of %s were changed meanwhile. Build it again when they stay" % (name, params["source"]))
        candidate = CANDIDATE + hashlib.sha256((name + recipe.to_json()).encode()).hexdigest()[:16]
        try:
            identity = bring_in(engine, recipe, base, layers, candidate, work)
            free = free_ports(params["port_range"], ports_in_use(engine.containers(), listening_ports()))
            if not free:
                raise ContainerError("no port of %s is free on this host for the trial" % params["port_range"])
            seconds = try_out(
                engine,
                recipe,
                candidate,
                health_path=params["health_path"],
                port=free[0],
                seconds=params["wait_seconds"],
                example=example_of(params),
                memory=None if params["memory"] is None else parse_size(params["memory"]),
            )
            before = engine.image(name)
            engine.ask("tag", identity, name)
        except ContainerError as error:
            raise ContainerError("%s was not built: %s" % (name, error)) from error
        finally:
            engine.attempt("rmi", candidate)
    if before is not None and before["Id"] != identity and recipe_of(before) is not None:
        left = engine.image(before["Id"])
        if left is not None and not left.get("RepoTags"):
            engine.attempt("rmi", before["Id"])  # nothing calls it by a name any more; without force, what a container needs stays
    forget_layers(engine, params["state_dir"])
    return {"start_seconds": seconds, "layers": [{"name": layer.name, "size": layer.size} for layer in layers]}


def present(module: AnsibleModule, engine: Engine) -> None:
    params = module.params
    name = check_image(params["name"])
    image = engine.image(name)
    found = recipe_of(image)
    if image is not None and found is None:
        raise ContainerError("%s is here and was not built by Lepton, so it is left alone: choose another name or tag" % name)
    recipe = recipe_for(engine, params, found)
    parse_size(params["size_budget"])
    made: dict[str, Any] = {}
    if differences(recipe, found) and not module.check_mode:
        if engine.image(recipe.base) is None:
            engine.pull(recipe.base)
            recipe = recipe_for(engine, params, found)
        engine.check_architecture(recipe.base)
        made = build(module, engine, recipe)
        image = engine.image(name)
    changes = differences(recipe, found)
    finish(module, changes, image, **made)


def absent(module: AnsibleModule, engine: Engine) -> None:
    name = check_image(module.params["name"])
    image = engine.image(name)
    changes = []
    if image is not None:
        if recipe_of(image) is None:
            raise ContainerError("%s was not built by Lepton, so it is left alone" % name)
        users = users_of(engine, image["Id"])
        if users:
            raise ContainerError("%s is what %s was made from: remove that first" % (name, ", ".join(users)))
        changes = [Change("image", image["Id"], None)]
        if not module.check_mode:
            engine.ask("rmi", name)
            forget_layers(engine, module.params["state_dir"])
            image = None
    finish(module, changes, image)


def finish(module: AnsibleModule, changes: list[Change], image: dict[str, Any] | None, **more: Any) -> None:
    shown = None if image is None else image_result(module.params["name"], image)
    module.exit_json(changed=bool(changes), diff=diff_of(changes), changes=[change._asdict() for change in changes], image=shown, **more)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            ENGINE_OPTIONS,
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            model={"type": "str"},
            version={"type": "str"},
            framework={"type": "str", "choices": ["onnx", "pytorch", "tensorflow", "command"]},
            source={"type": "path"},
            base={"type": "str", "default": "python:3.12-slim-bookworm"},
            requirements={"type": "path"},
            licence={"type": "str", "default": ""},
            command={"type": "list", "elements": "str", "default": []},
            environment={"type": "dict", "default": {}},
            port={"type": "int", "default": 8080},
            user={"type": "str", "default": "65532:65532"},
            health_path={"type": "str", "default": "/v2/health/ready"},
            size_budget={"type": "str", "default": "4GiB"},
            wait_seconds={"type": "int", "default": 120},
            memory={"type": "str"},
            serving={"type": "dict", "default": {}},
            sbom={"type": "str"},
        ),
        supports_check_mode=True,
    )
    act = present if module.params["state"] == "present" else absent
    with engine_of(module) as engine:
        if module.check_mode:
            act(module, engine)
        else:
            with host_lock(lock_dir(module), "images", LOCK_SECONDS):
                act(module, engine)


if __name__ == "__main__":
    main()

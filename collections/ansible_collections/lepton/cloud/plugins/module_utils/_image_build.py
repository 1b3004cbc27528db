# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Build a model's image on a container host: its requirements' layer, the archive, and the trial before it gets its name. PRIVATE."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Iterator, Mapping, Sequence

from ._command import clean
from ._container import ContainerError, Limits, Spec, check_limits
from ._engine import Engine
from ._image import HOME, SBOM, SERVER, SITE, Layer, Recipe, chain_ids, image_config
from ._image_store import known_chains, load, room_for, save
from ._layers import SavedImage, text_layer, tree_layer, write_archive

PIP_SECONDS = 3600
MIB = 1024 * 1024
WHEELS = "/usr/share/python-wheels"  # Debian's python3-pip-whl
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PIP_CONFIG = "/etc/pip.conf"  # where an organisation says which package index is its own
INSIDE = "/lepton"
TRIAL, CANDIDATE = "lepton-try-", "lepton-candidate:"  # names of what a build has while it lasts
TRY_SECONDS = 30  # for one answer of the example


def home(state_dir: str) -> str:
    """Return where builds keep their files; not `images`, which is where a hypervisor of the same host looks for images of nodes."""
    return os.path.join(state_dir, "model_images")


@contextmanager
def work_folder(state_dir: str, name: str) -> Iterator[str]:
    """Yield an empty folder for one build; what a build that was cut short left there is removed first."""
    folder = os.path.join(home(state_dir), "work", hashlib.sha256(name.encode()).hexdigest()[:16])
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def requirements_layer(
    engine: Engine, recipe: Recipe, lists: Mapping[str, str], installer: str, state_dir: str, work: str
) -> tuple[Layer, list[dict[str, Any]]]:
    """Return the layer of a recipe's requirements and what is in it; one that was made before is found again.

    `lists` are requirement lists by name, with pinned versions and hashes. They are installed by the base's own Python.
    """
    keep = os.path.join(home(state_dir), "layers")
    os.makedirs(keep, mode=0o700, exist_ok=True)
    key = hashlib.sha256("\0".join((recipe.base_id, recipe.requirements, installer)).encode()).hexdigest()
    path, facts = os.path.join(keep, key + ".tar"), os.path.join(keep, key + ".json")
    if os.path.exists(facts) and os.path.exists(path):
        with open(facts, encoding="utf-8") as file:
            known = json.load(file)
        if os.path.getsize(path) == known["size"]:
            os.utime(facts)
            return Layer("requirements", known["diff_id"], known["size"], path), known["distributions"]
    distributions = _install(engine, recipe, lists, installer, work)
    made = tree_layer("requirements", os.path.join(work, "site"), SITE, os.path.join(work, "requirements.tar"), strict=False)
    os.replace(made.path, path)
    with open(facts + ".partial", "w", encoding="utf-8") as file:
        json.dump({"diff_id": made.diff_id, "size": made.size, "distributions": distributions}, file)
    os.replace(facts + ".partial", facts)
    return made._replace(path=path), distributions


def _install(engine: Engine, recipe: Recipe, lists: Mapping[str, str], installer: str, work: str) -> list[dict[str, Any]]:
    for folder in (os.path.join(work, "site"), os.path.join(work, "tmp")):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    for name, text in {"install.py": installer, **lists}.items():
        with open(os.path.join(work, name), "w", encoding="utf-8") as file:
            file.write(text)
    # Whoever runs this module owns the folder, and in the container has no capability that would make up for not owning it.
    user = "0:0" if engine.kind == "podman" else "%d:%d" % (os.getuid(), os.getgid())
    name = "lepton-build-" + os.path.basename(work)
    command = ["run", "--rm", "--name=" + name, "--user=" + user, "--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    command += ["--volume=%s:%s/build:rw" % (work, INSIDE)]
    for path, inside in ((WHEELS, INSIDE + "/wheels"), (CERTIFICATES, INSIDE + "/certificates.crt"), (PIP_CONFIG, PIP_CONFIG)):
        command += ["--volume=%s:%s:ro" % (path, inside)] if os.path.exists(path) else []
    environment = {"HOME": INSIDE + "/build", "TMPDIR": INSIDE + "/build/tmp", "PIP_NO_CACHE_DIR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if os.path.exists(CERTIFICATES):
        environment["PIP_CERT"] = INSIDE + "/certificates.crt"
    command += ["--env=%s=%s" % pair for pair in environment.items()]
    command += ["--workdir=%s/build" % INSIDE, "--entrypoint=python3", recipe.base_id, "install.py", INSIDE + "/build/site", SITE, *sorted(lists)]
    engine.attempt("rm", "--force", name)  # of a build that was cut short
    try:
        ran = engine.attempt(*command, seconds=PIP_SECONDS)
    finally:
        engine.attempt("rm", "--force", name)
    if ran.code:
        raise ContainerError("the requirements could not be installed in %s: %s" % (recipe.base, _told_by_pip(ran.trouble or ran.out)))
    shutil.rmtree(os.path.join(work, "site", "bin"), ignore_errors=True)  # commands that nothing in the image calls
    with open(os.path.join(work, "site.json"), encoding="utf-8") as file:
        found: list[dict[str, Any]] = json.load(file)
    return found


def _told_by_pip(text: str) -> str:
    """Return what pip says went wrong: its lines of errors, without the trace of our own call of it."""
    lines = [line.strip() for line in clean(text).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Traceback", "File ", "WARNING", "raise ", "subprocess.", "main(", "[notice]", "^"))]
    return " ".join(told[:6])[:1200] or "it ended without a word"


def base_packages(engine: Engine, recipe: Recipe, work: str) -> str:
    """Return dpkg's list of what the base image has, "" where it has none."""
    target = os.path.join(work, "dpkg-status")
    name = "lepton-build-" + os.path.basename(work)
    engine.attempt("rm", "--force", name)
    engine.ask("create", "--name=" + name, recipe.base_id, "true")
    try:
        ran = engine.attempt("cp", name + ":/var/lib/dpkg/status", target)
    finally:
        engine.attempt("rm", "--force", name)
    if ran.code:
        return ""
    with open(target, encoding="utf-8", errors="replace") as file:
        return file.read()


def own_layers(requirements: Layer | None, server: Mapping[str, str], source: str, model_target: str, sbom: str, work: str) -> list[Layer]:
    """Write the layers that an image has above its base."""
    layers = [] if requirements is None else [requirements]
    if server:
        layers.append(text_layer("server", SERVER, server, os.path.join(work, "server.tar")))
    layers.append(tree_layer("model", source, model_target, os.path.join(work, "model.tar"), strict=True))
    layers.append(text_layer("bill of materials", HOME, {SBOM: sbom}, os.path.join(work, "sbom.tar")))
    return layers


def bring_in(engine: Engine, recipe: Recipe, base: Mapping[str, Any], layers: Sequence[Layer], candidate: str, work: str) -> str:
    """Make the image known to the engine under a passing name and return its identity."""
    config = image_config(recipe, base, layers)
    below: list[str] = list(base["RootFS"]["Layers"])
    own_size = sum(layer.size for layer in layers)
    path = os.path.join(work, "image.tar")
    with ExitStack() as stack:
        content: list[tuple[str, IO[bytes] | None]] = [(diff_id, None) for diff_id in below]
        if not set(chain_ids(below)) <= known_chains(engine):
            room_for(work, 2 * int(base.get("Size") or 0) + own_size)
            save(engine, recipe.base, os.path.join(work, "base.tar"))
            saved = stack.enter_context(SavedImage(os.path.join(work, "base.tar")))
            content = [(diff_id, saved.layer(diff_id)) for diff_id in below]
        room_for(work, own_size)
        content += [(layer.diff_id, stack.enter_context(open(layer.path, "rb"))) for layer in layers]
        write_archive(path, candidate, config, content)
    return load(engine, path, candidate, below + [layer.diff_id for layer in layers])


def clear_trials(engine: Engine) -> None:
    """Remove what builds that were cut short left: their trials, and the passing names of their images. For who holds the builds' lock."""
    for container in engine.containers():
        if container.name.startswith(TRIAL):
            engine.attempt("rm", "--force", "--volumes", container.name)
    for name in engine.image_ids():
        if name.startswith(CANDIDATE):
            engine.attempt("rmi", name)


def try_out(engine: Engine, recipe: Recipe, candidate: str, *, health_path: str, port: int, seconds: float, example: str | None, memory: int | None) -> float:
    """Start a container of an image as the site would, and return how many seconds it took until it was ready.

    `example` is a request of the Open Inference Protocol that must be answered. `memory` is what it may use, in bytes; half of what the
    host may still give where it is None, so that what serves is not driven out, and what is started meanwhile finds room. Raises
    ContainerError with what went wrong, and with the last lines that the container wrote.
    """
    spec = Spec(candidate, ports=("127.0.0.1:%d:%d" % (port, recipe.port),), health_path=health_path, health_port=recipe.port)
    name = TRIAL + candidate.rpartition(":")[2]
    limits = Limits(memory=memory or engine.memory_free() // 2 // MIB * MIB, restart="no")
    begun = time.monotonic()
    try:
        with engine.promising(name, check_limits(limits)):
            engine.create(name, spec, limits, {})
        engine.ask("start", name)
        engine.wait_healthy(name, spec, seconds)
        ready = time.monotonic() - begun
        if example is not None:
            _infer(recipe.model, port, example, engine, name)
    finally:
        engine.attempt("rm", "--force", "--volumes", name)
    return round(ready, 2)


def _infer(model: str, port: int, request: str, engine: Engine, name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TRY_SECONDS)
    try:
        connection.request("POST", "/v2/models/%s/infer" % model, request.encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        status, body = answer.status, answer.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        status, body = 0, str(error) or type(error).__name__
    finally:
        connection.close()
    if status != 200:
        wrote = engine.logs(name, 5).strip()[-800:]
        raise ContainerError("example.json was answered %s %s. It wrote last: %s" % (status or "not at all:", clean(body)[:400], wrote or "nothing"))


def forget_layers(engine: Engine, state_dir: str) -> None:
    """Remove kept layers that no image of this engine has any more; the one that was used last stays, for the next build."""
    keep = os.path.join(home(state_dir), "layers")
    facts = sorted((os.path.join(keep, name) for name in os.listdir(keep) if name.endswith(".json")), key=os.path.getmtime) if os.path.isdir(keep) else []
    identities = engine.ask("images", "--all", "--quiet", "--no-trunc").split() if facts[:-1] else []
    found = json.loads(engine.attempt("image", "inspect", *sorted(set(identities))).out or "[]") if identities else []
    used = {diff_id for item in found for diff_id in (item.get("RootFS") or {}).get("Layers") or ()}
    for path in facts[:-1] if used else ():
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            if json.load(file)["diff_id"] not in used:
                os.unlink(path)
                os.unlink(path[: -len(".json")] + ".tar")

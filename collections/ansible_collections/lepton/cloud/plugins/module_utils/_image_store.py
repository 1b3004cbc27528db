# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Images that an engine keeps: what each was built from, and how they get in and out. PRIVATE to the collection."""

from __future__ import annotations

import json
import os
from typing import Any, Mapping, Sequence

from ._command import clean
from ._container import ContainerError
from ._engine import Engine
from ._image import BUILD_LABEL, Recipe, chain_ids, read_recipe

TRANSFER_SECONDS = 3600  # of the largest images over the slowest disks


def recipe_of(image: Mapping[str, Any] | None) -> Recipe | None:
    """Return what an image was built from, None for one that we did not build, or that is not there."""
    labels = ((image or {}).get("Config") or {}).get("Labels") or {}
    return read_recipe(labels.get(BUILD_LABEL))


def image_result(name: str, image: Mapping[str, Any]) -> dict[str, Any]:
    """Return an image as every module reports it."""
    labels = {str(key): clean(str(value)) for key, value in ((image.get("Config") or {}).get("Labels") or {}).items()}
    return {
        "name": clean(name),
        "id": image["Id"],
        "size": int(image.get("Size") or 0),
        "model": labels.get("cloud.lepton.model"),
        "version": labels.get("org.opencontainers.image.version"),
        "framework": labels.get("cloud.lepton.framework"),
        "licence": labels.get("org.opencontainers.image.licenses"),
        "source": labels.get("cloud.lepton.source"),
        "owned": BUILD_LABEL in labels,
    }


def images(engine: Engine) -> list[dict[str, Any]]:
    """Return all images of an engine that have a name, by name."""
    names = engine.image_ids()
    if not names:
        return []
    ran = engine.attempt("image", "inspect", *sorted(set(names.values())))  # one that has gone meanwhile makes it fail, and shows the others
    found = {item["Id"].rpartition(":")[2]: item for item in json.loads(ran.out or "[]")}
    told = ((name, found.get(identity.rpartition(":")[2])) for name, identity in names.items())
    return [image_result(name, dict(image, Id=names[name])) for name, image in told if image is not None]


def known_chains(engine: Engine) -> set[str]:
    """Return the layers that an engine need not be sent again: none for Podman, and for Docker with containerd's store, which want all."""
    facts = engine.attempt("info", "--format", "{{json .DriverStatus}}")
    if engine.kind != "docker" or facts.code or "io.containerd.snapshotter" in facts.out:
        return set()
    identities = engine.ask("images", "--all", "--quiet", "--no-trunc").split()
    ran = engine.attempt("image", "inspect", *sorted(set(identities))) if identities else None
    found = json.loads(ran.out or "[]") if ran is not None else []
    return {chain for item in found for chain in chain_ids((item.get("RootFS") or {}).get("Layers") or ())}


def load(engine: Engine, path: str, name: str, layers: Sequence[str]) -> str:
    """Make an archive's image known to an engine and return its identity there; one of other layers does not keep the name.

    What an image is called differs between engines (the digest of its configuration, or in containerd's store that of its manifest),
    what it is made of does not.
    """
    before = engine.image(name)
    engine.ask("load", "--quiet", "--input", path, seconds=TRANSFER_SECONDS)
    found = engine.image(name)
    if found is None or layers_of(found) != list(layers):
        engine.attempt(*(("rmi", name) if before is None else ("tag", before["Id"], name)))
        raise ContainerError("%s was loaded, and is not what was sent: the archive was damaged on its way. It was not kept" % name)
    return str(found["Id"])


def layers_of(image: Mapping[str, Any]) -> list[str]:
    """Return the diff IDs of an image's layers."""
    return list((image.get("RootFS") or {}).get("Layers") or ())


def save(engine: Engine, name: str, path: str) -> None:
    """Write an engine's image into an archive."""
    engine.ask("save", "--output", path, name, seconds=TRANSFER_SECONDS)


def users_of(engine: Engine, identity: str) -> list[str]:
    """Return the containers that were made from an image."""
    return [container.name for container in engine.containers() if container.image_id == identity]


def room_for(folder: str, size: int) -> None:
    """Raise ContainerError where a folder's disk has no room for `size` more bytes."""
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < size:
        raise ContainerError("the disk of %s on this host has %d MiB free, and %d MiB are needed" % (folder, free.f_bavail * free.f_frsize >> 20, size >> 20))

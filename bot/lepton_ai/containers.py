# SPDX-License-Identifier: Apache-2.0
"""The Python API for containers: thin, each call is a request like any other and blocks until its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_ai.resources import perform
from lepton_ai.settings import load_settings


class Container:
    """A container of an image, under a name. `start()` makes it where there is none; methods raise LeptonError with the operation's own words.

    `ports` are HOST:CONTAINER; with `health_path` and `health_port`, `start()` returns when it is healthy.
    """

    def __init__(
        self,
        image: str,
        name: str,
        *,
        host: str | None = None,
        ports: Sequence[str] | None = None,
        health_path: str | None = None,
        health_port: int | None = None,
        cpus: float | None = None,
        memory: str | None = None,
        site: Path | None = None,
    ) -> None:
        self.image = image
        self.name = name
        self._options: dict[str, Any] = {"host": host, "ports": ports, "health_path": health_path, "health_port": health_port, "cpus": cpus, "memory": memory}
        self._settings = load_settings(site)

    def start(self) -> None:
        """Start it, or bring the one that runs to this image and these options."""
        given = {name: list(value) if name == "ports" else value for name, value in self._options.items() if value is not None}
        perform(self._settings, "container", "start", {"container": self.name, "image": self.image, **given})

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        perform(self._settings, "container", "stop", {"container": self.name})

    def __repr__(self) -> str:
        return f"Container({self.image!r}, {self.name!r})"

# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Disk images from elsewhere, with their checksum. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from dataclasses import dataclass
from http.client import HTTPException
from typing import IO, Any, Callable

from ansible.module_utils.urls import open_url

from ._host_lock import host_lock
from ._libvirt import Host
from ._node import NodeError
from ._units import format_size

CHECKSUM = re.compile(r"(sha256|sha512):([0-9a-f]{64}|[0-9a-f]{128})", re.ASCII)
CHUNK = 1 << 20
FETCH_SECONDS = 3600  # that another node's creation may take to fetch the same image
ANSWER_SECONDS = 60  # that a server may say nothing


@dataclass(frozen=True)
class Source:
    """Where an image comes from; `checksum` as sha256:HEX or sha512:HEX."""

    url: str
    checksum: str


def check_source(source: Source) -> Source:
    """Return what is wanted if it can be fetched, else raise NodeError."""
    if urllib.parse.urlsplit(source.url).scheme not in ("http", "https"):
        raise NodeError("image_url: expected http:// or https://, not %s" % ascii(source.url[:80]))
    found = CHECKSUM.fullmatch(source.checksum)
    if found is None or len(found.group(2)) != hashlib.new(found.group(1)).digest_size * 2:
        raise NodeError("image_checksum: expected sha256:HEX or sha512:HEX, not %s" % ascii(source.checksum[:80]))
    return source


def fetch(source: Source, path: str, check: Callable[[str], Any]) -> None:
    """Have a file as it stands elsewhere: whole, with its checksum and as `check` wants it, or not at all."""
    kind, _colon, digest = source.checksum.partition(":")
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o711, exist_ok=True)
    partial = os.path.join(folder, ".fetching-" + os.path.basename(path))  # one name, so that what a killed fetch left is written over
    try:
        with open(partial, "wb") as target:
            seen = _copy(source.url, target, folder, kind)
        if seen != digest:
            raise NodeError("%s is not what was asked for: its %s is %s, not %s. Nothing of it is kept" % (source.url, kind, seen, digest))
        check(partial)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except (OSError, HTTPException) as error:  # urllib's own errors are of the former
        raise NodeError("%s could not be fetched to %s: %s" % (source.url, folder, error or type(error).__name__)) from error
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def _copy(url: str, target: IO[bytes], folder: str, kind: str) -> str:
    """Return the digest of what was copied."""
    seen = hashlib.new(kind)
    with open_url(url, timeout=ANSWER_SECONDS, http_agent="lepton") as answer:
        length = int(answer.headers.get("Content-Length") or 0)
        room = os.statvfs(folder)
        if length > room.f_bavail * room.f_frsize:
            raise NodeError("%s has %s, and %s has %s free" % (url, format_size(length), folder, format_size(room.f_bavail * room.f_frsize // 1024 * 1024)))
        for chunk in iter(lambda: answer.read(CHUNK), b""):
            seen.update(chunk)
            target.write(chunk)
        if length and target.tell() != length:
            raise OSError("the connection ended after %d of %d bytes" % (target.tell(), length))
    return seen.hexdigest()


def fetch_image(host: Host, image: str, source: Source) -> None:
    """Have an image of a host's that comes from elsewhere, where it is not there yet."""
    if os.path.basename(image) != image or image.startswith("."):
        raise NodeError("%s: an image that comes from elsewhere has a plain name" % ascii(image[:80]))
    with host_lock(host.lock_dir, "image." + image, FETCH_SECONDS):
        if not host.has_image(image):
            fetch(source, os.path.join(host.image_dir, image + ".qcow2"), host.files.qcow2_size)

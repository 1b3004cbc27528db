# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Layers and archives of images as files: the same content gives the same bytes. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from typing import IO, Any, Collection, Iterator, Mapping, Sequence

from ._container import ContainerError
from ._image import LEFT_OUT, SECRET_FILE, Layer, image_id

CHUNK = 1 << 20


class _Digesting:
    """A file that is written to, and digested on the way; without `target`, only digested."""

    def __init__(self, target: IO[bytes] | None) -> None:
        self._target = target
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data) if self._target is None else self._target.write(data)

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._digest.hexdigest()


def walk(root: str, *, strict: bool) -> Iterator[str]:
    """Yield the paths below a folder, relative to it and sorted, folders before what they hold.

    `strict` is for what people put there: it raises ContainerError for files that hold secrets by their names, for links that lead out
    of the folder, and for what is neither file, folder nor link.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not strict or name not in LEFT_OUT)
        here = os.path.relpath(folder, root)
        for name in sorted(folders + files):
            path = os.path.normpath(os.path.join(here, name))
            if strict and name in LEFT_OUT:
                continue
            if strict:
                _check_entry(root, path)
            yield path


def _check_entry(root: str, path: str) -> None:
    full = os.path.join(root, path)
    mode = os.lstat(full).st_mode
    if stat.S_ISLNK(mode):
        target = os.path.realpath(full)
        if os.path.commonpath([os.path.realpath(root), target]) != os.path.realpath(root) or os.path.isabs(os.readlink(full)):
            raise ContainerError("source: %s is a link that leads out of the model's folder: put the file itself there" % ascii(path))
    elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ContainerError("source: %s is neither a file nor a folder" % ascii(path))
    _check_name(path)


def _check_name(path: str) -> None:
    if SECRET_FILE.fullmatch(os.path.basename(path).lower()):
        raise ContainerError("source: %s is a file that people keep secrets in, and everybody who gets the image could read it: take it out" % ascii(path))


def _entry(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size = kind, mode, size
    return entry  # of root, from 1970: what a TarInfo is when nothing else is said


def _add_tree(archive: tarfile.TarFile, root: str, target: str, *, strict: bool) -> None:
    for path in [""] if os.path.isfile(root) else walk(root, strict=strict):
        full = os.path.join(root, path) if path else os.path.realpath(root)  # a link such as current.onnx stands for its file
        found = os.lstat(full)
        name = target + "/" + path if path else target
        if stat.S_ISLNK(found.st_mode):
            entry = _entry(name, tarfile.SYMTYPE, 0o777)
            entry.linkname = os.readlink(full)
            archive.addfile(entry)
        elif stat.S_ISDIR(found.st_mode):
            archive.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
        else:
            with open(full, "rb") as file:
                archive.addfile(_entry(name, tarfile.REGTYPE, 0o755 if found.st_mode & 0o100 else 0o644, os.fstat(file.fileno()).st_size), file)


def _parents(archive: tarfile.TarFile, target: str) -> None:
    parts = target.split("/")
    for end in range(1, len(parts)):
        archive.addfile(_entry("/".join(parts[:end]), tarfile.DIRTYPE, 0o755))


def tree_digest(root: str, target: str) -> str:
    """Return the diff ID that a layer of a folder or file will have, without writing it."""
    return _tree_layer(root, target, None, strict=True)


def tree_layer(name: str, root: str, target: str, path: str, *, strict: bool) -> Layer:
    """Write a folder or file as a layer in which it is called `target`."""
    with open(path, "wb") as file:
        diff_id = _tree_layer(root, target, file, strict=strict)
    return Layer(name, diff_id, os.path.getsize(path), path)


def _tree_layer(root: str, target: str, file: IO[bytes] | None, *, strict: bool) -> str:
    if strict and os.path.isfile(root):
        for name in (root, os.path.realpath(root)):
            _check_name(os.path.basename(name))
    sink: Any = _Digesting(file)
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        inside = target.lstrip("/")
        _parents(archive, inside)
        if not os.path.isfile(root):
            archive.addfile(_entry(inside, tarfile.DIRTYPE, 0o755))
        _add_tree(archive, root, inside, strict=strict)
    diff_id: str = sink.diff_id
    return diff_id


def text_layer(name: str, folder: str, texts: Mapping[str, str], path: str) -> Layer:
    """Write texts, by their names in `folder`, as a layer."""
    with open(path, "wb") as file:
        sink: Any = _Digesting(file)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            inside = folder.lstrip("/") + "/"
            _parents(archive, inside)
            for text_name, text in sorted(texts.items()):
                data = text.encode()
                archive.addfile(_entry(inside + text_name, tarfile.REGTYPE, 0o644, len(data)), io.BytesIO(data))
    return Layer(name, sink.diff_id, os.path.getsize(path), path)


def text_digest(texts: Mapping[str, str]) -> str:
    """Return what tells texts, by their names, from others."""
    return "sha256:" + hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()


def write_archive(path: str, name: str, config: bytes, layers: Sequence[tuple[str, IO[bytes] | None]]) -> None:
    """Write an archive as `docker load` reads it. `layers`: for each its digest and its content, None where the engine has it already.

    An engine looks for a layer before it opens its file: https://github.com/moby/moby/blob/v20.10.24/image/tarexport/load.go#L84
    """
    with tarfile.open(path, "w") as archive:
        files = []
        for digest, content in layers:
            files.append(digest.rpartition(":")[2] + ".tar")
            if content is not None and files[-1] not in files[:-1]:
                content.seek(0, os.SEEK_END)
                entry = _entry(files[-1], tarfile.REGTYPE, 0o644, content.tell())
                content.seek(0)
                archive.addfile(entry, content)
        config_name = image_id(config).rpartition(":")[2] + ".json"
        manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": files}]).encode()
        for text_name, data in ((config_name, config), ("manifest.json", manifest)):
            archive.addfile(_entry(text_name, tarfile.REGTYPE, 0o644, len(data)), io.BytesIO(data))


class SavedImage:
    """An archive that `docker save` or `podman save` wrote for one image: its configuration and its layers, by diff ID."""

    def __init__(self, path: str) -> None:
        self._archive = tarfile.open(path)  # kept open for its layers
        manifest = json.loads(self._read("manifest.json"))[0]
        self.config = self._read(manifest["Config"])
        self.diff_ids: list[str] = json.loads(self.config)["rootfs"]["diff_ids"]
        self._files = dict(zip(self.diff_ids, manifest["Layers"]))

    def __enter__(self) -> SavedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def _open(self, name: str) -> IO[bytes]:
        file = self._archive.extractfile(name)  # follows the links that older engines write for a layer that comes twice
        if file is None:
            raise ContainerError("the engine's own archive lacks %s" % ascii(name[:100]))
        return file

    def _read(self, name: str) -> bytes:
        return self._open(name).read()

    def layer(self, diff_id: str) -> IO[bytes]:
        return self._open(self._files[diff_id])

    def layers_without(self, known: Collection[str], chains: Sequence[str]) -> list[tuple[str, IO[bytes] | None]]:
        """Return its layers in order, without the content of those whose chain is known where it goes."""
        return [(diff_id, None if chain in known else self.layer(diff_id)) for diff_id, chain in zip(self.diff_ids, chains)]

# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Backups as files below one folder: what is there, whether it is whole, and how it comes and goes. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace

from ._backup import DISK, ID, MANIFEST, Backup, chain_of, read, written
from ._node import NodeError, check_name

BLOCK = 1024 * 1024
LARGEST_MANIFEST = 1024 * 1024


class Store:
    """The backups of one node, in `DIRECTORY/NODE`."""

    def __init__(self, directory: str, node: str) -> None:
        if not os.path.isabs(directory):
            raise NodeError("directory: expected an absolute path, not %s" % ascii(directory[:80]))
        if not os.path.isdir(directory):
            raise NodeError("%s is not there: the folder of backups is never made by itself, since it may be one that is not mounted" % directory)
        self.folder = os.path.join(directory, check_name(node))
        self._wrong: dict[str, str] = {}  # by backup: a full one is read once, however many build upon it

    def path(self, identity: str, file: str = "") -> str:
        return os.path.join(self.folder, identity, file)

    def known(self) -> dict[str, Backup]:
        """Return the backups that are whole by their names; one without a readable manifest is none."""
        names = sorted(name for name in os.listdir(self.folder) if ID.fullmatch(name)) if os.path.isdir(self.folder) else []
        found = {}
        for name in names:
            try:
                found[name] = self._read(name)
            except (NodeError, OSError):
                continue
        return found

    def unreadable(self) -> list[str]:
        """Return what bears a backup's name and has no manifest that can be read."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sorted({name for name in names if ID.fullmatch(name)} - set(self.known()))

    def _read(self, identity: str) -> Backup:
        path = self.path(identity, MANIFEST)
        with open(path, encoding="utf-8") as file:
            found = read(file.read(LARGEST_MANIFEST), path)
        if found.id != identity or found.node != os.path.basename(self.folder):
            raise NodeError("%s is the manifest of another backup" % path)
        return found

    def begin(self, identity: str) -> str:
        """Make the folder of a backup that is under way, and return it. What earlier ones have left that were cut short goes."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        for name in os.listdir(self.folder):
            if name.startswith("."):
                shutil.rmtree(os.path.join(self.folder, name), ignore_errors=True)
        partial = self.path("." + identity)
        os.mkdir(partial, 0o700)
        return partial

    def finish(self, backup: Backup) -> Backup:
        """Give a backup its name, with its manifest: from then on it is one. One that comes from elsewhere has its digest already."""
        partial = self.path("." + backup.id)
        disk = os.path.join(partial, DISK)
        if os.path.exists(disk):
            sha256, size = digest(disk)
            if backup.sha256 and backup.sha256 != sha256:
                raise NodeError("backup %s is not as it was written: its digest is another" % backup.id)
            backup = replace(backup, sha256=sha256, size=size)
        with open(os.path.join(partial, MANIFEST), "w", encoding="utf-8") as file:
            file.write(written(backup))
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, self.path(backup.id))
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return backup

    def give_up(self, identity: str) -> None:
        """Remove what there is of a backup that failed."""
        shutil.rmtree(self.path("." + identity), ignore_errors=True)

    def remove(self, identity: str) -> None:
        """Remove a backup: its name first, so that half of one is never taken for a whole."""
        hidden = self.path("." + identity)
        os.rename(self.path(identity), hidden)
        shutil.rmtree(hidden)

    def wrong(self, backup: Backup) -> str:
        """Return what is wrong with a backup's own file, "" where it is as it was written."""
        if backup.id not in self._wrong:
            self._wrong[backup.id] = self._compared(backup)
        return self._wrong[backup.id]

    def _compared(self, backup: Backup) -> str:
        if not backup.sha256:
            return ""
        path = self.path(backup.id, DISK)
        try:
            found, size = digest(path)
        except OSError as error:
            return "%s: %s" % (path, error.strerror)
        if size != backup.size:
            return "%s has %d bytes, and had %d" % (path, size, backup.size)
        return "" if found == backup.sha256 else "%s is not as it was written: its digest is another" % path

    def whole_chain(self, identity: str) -> list[Backup]:
        """Return a backup with all that it builds upon; raise NodeError where one of them is missing or not as it was written."""
        chain = chain_of(identity, self.known())
        trouble = [said for item in chain if (said := self.wrong(item))]
        if trouble:
            raise NodeError("backup %s cannot be used: %s" % (identity, "; ".join(trouble)))
        return chain


def digest(path: str) -> tuple[str, int]:
    """Return the SHA-256 and the size of a file, which is on its disk by then."""
    found, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while block := file.read(BLOCK):
            found.update(block)
            size += len(block)
    return found.hexdigest(), size

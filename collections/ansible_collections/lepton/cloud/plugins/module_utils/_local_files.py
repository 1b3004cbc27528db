# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Images, disks and console logs of nodes as files of this machine. PRIVATE to the collection.

`_volume_files` offers the same for a hypervisor on another machine.
"""

from __future__ import annotations

import json
import os
from typing import Any, Callable, List, Sequence, Tuple

from ._node import NodeError

# Runs a command and returns (code, output, errors): AnsibleModule.run_command without its own failing.
Run = Callable[[List[str]], Tuple[int, str, str]]


class LocalFiles:
    """Files by their paths, with qemu-img for what is inside."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read(self, path: str, limit: int) -> bytes:
        """Return the last `limit` bytes of a file, b"" when there is none."""
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise NodeError("%s cannot be read: %s" % (path, error)) from error

    def names(self, folder: str) -> list[str]:
        """Return the names of what lies in a folder, [] when there is none."""
        return os.listdir(folder) if os.path.isdir(folder) else []

    def free(self, folder: str) -> int | None:
        """Return the bytes that are free where a folder is or would be made."""
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        room = os.statvfs(folder)
        return room.f_bavail * room.f_frsize

    def qcow2_size(self, path: str) -> int:
        """Return the virtual size of a qcow2 image in bytes."""
        code, out, trouble = self._run(["qemu-img", "info", "--output=json", path])
        if code:
            raise NodeError("the image %s cannot be read: %s (qemu-img is in the package qemu-utils)" % (path, trouble.strip()))
        facts: dict[str, Any] = json.loads(out)
        if facts.get("format") != "qcow2":
            raise NodeError("the image %s is %s, not qcow2" % (path, facts.get("format")))
        return int(facts["virtual-size"])

    def make_folder(self, folder: str) -> None:
        os.makedirs(folder, mode=0o711, exist_ok=True)

    def make_disk(self, path: str, image: str | None, size: int | None, *, raw: bool = False) -> None:
        """Make a disk under another name and give it its own when it is whole; a file that is there already stays."""
        partial = path + ".partial"
        if self.is_own(path):
            return  # made by an earlier try that was cut short before it could say so
        if os.path.exists(path):
            raise NodeError("%s is there already, and is left as it is: move it away" % path)
        if os.path.exists(partial):
            os.unlink(partial)
        if raw:
            self._make_raw(partial, image, size)
        else:
            command = ["qemu-img", "create", "-q", "-f", "qcow2"] + (["-b", image, "-F", "qcow2"] if image else [])
            code, _out, trouble = self._run(command + [partial] + ([str(size)] if size else []))
            if code:
                raise NodeError("the disk could not be made: %s (qemu-img is in the package qemu-utils)" % trouble.strip())
        # The second name stays until the creation is finished: it is what says that the disk is ours.
        os.link(partial, path)

    def _make_raw(self, path: str, image: str | None, size: int | None) -> None:
        """Write a disk that builds upon no other; what is empty of it takes no room."""
        if image:
            self._image_tool(["convert", "-O", "raw", image, path])
        with open(path, "ab") as disk:
            disk.truncate(max(size or 0, disk.tell()))

    def flatten(self, path: str, target: str, kind: str | None = None) -> None:
        """Write all that a disk of a `kind` holds, with what it builds upon, into a file of its own. What is in it is never guessed: a guest may write that."""
        self._image_tool(["convert", *(["-f", kind] if kind else []), "-O", "qcow2", path, target])

    def join(self, files: Sequence[str], target: str) -> None:
        """Write one disk of a full one and what has changed since, each on top of the one before. The files themselves stay as they are."""
        disk: dict[str, Any] = {}
        for file in files:
            below = {"backing": disk} if disk else {}
            disk = {"driver": "qcow2", "file": {"driver": "file", "filename": file}, **below}
        self.flatten("json:" + json.dumps(disk), target)

    def _image_tool(self, words: list[str]) -> None:
        code, _out, trouble = self._run(["qemu-img", *words])
        if code:
            raise NodeError("qemu-img %s failed: %s" % (words[0], trouble.strip()))

    def is_own(self, path: str) -> bool:
        """Return whether a disk was made by a creation that is not finished yet."""
        partial = path + ".partial"
        return os.path.exists(partial) and os.path.exists(path) and os.path.samefile(partial, path)

    def delete(self, path: str, home: str) -> None:
        """Delete a file as far as there is one and it lies in `home`."""
        if os.path.dirname(os.path.realpath(path)) == os.path.realpath(home) and os.path.exists(path):
            os.unlink(path)

# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a running service has read what its files say now: pure decisions."""

from __future__ import annotations

from typing import NamedTuple, Optional

# A file's time is that of the kernel's last tick, so it can be this much older than the writing was.
TICK_SECONDS = 0.01


class File(NamedTuple):
    """A file or a folder: `changed` in seconds since the epoch, `digest` of what is in it."""

    path: str
    changed: float
    digest: str


class Needed(NamedTuple):
    """What has a service read its files, "reload" or "restart", and the file that it has not read."""

    action: str
    file: str


def newer(files: list[File], started: float) -> Optional[File]:
    """Return the newest of the files that changed after the service had started, None where there is none."""
    return max((file for file in files if file.changed > started - TICK_SECONDS), key=lambda file: file.changed, default=None)


def told_of(files: list[File], start: str) -> str:
    """Return what is remembered of a restart or a reload: which files, as they were, and which `start` of the service has read them."""
    return "\n".join([start, *sorted("%s %s" % (file.digest, file.path) for file in files)])


def needed(started: Optional[float], restart: list[File], reload: list[File], *, told: str, would_tell: str, unit_read: bool = True) -> Optional[Needed]:
    """Return what is to be done, None where the service has read all or does not run, and so will read all when it starts.

    `started` is in seconds since the epoch, None where it does not run. `told` is `told_of` all files when they were last read for this, "" where
    they were not, and `would_tell` that of now: then they have been read, whatever their time says, which can be of a clock that went wrong.
    `unit_read` is whether systemd has read the unit, which it does when it is told to, whatever the file's time.
    """
    if started is None:
        return None
    if not unit_read:
        return Needed("restart", "its unit")
    if told == would_tell:
        return None
    unread = newer(restart, started)
    if unread is not None:
        return Needed("restart", unread.path)
    unread = newer(reload, started)
    return Needed("reload", unread.path) if unread is not None else None

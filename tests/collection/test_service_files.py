# SPDX-License-Identifier: Apache-2.0
"""Whether a service has read its files; what is then done to it is seen on a machine with systemd, in tests/debian."""

from __future__ import annotations

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._service_files import File, Needed, needed, told_of

OLD, NEW, NEWEST = File("/etc/old", 90.0, "a"), File("/etc/new", 110.0, "b"), File("/etc/newest", 120.0, "c")


@pytest.mark.parametrize(
    ("started", "restart", "reload", "told", "expected"),
    [
        (100.0, [OLD], [OLD], "", None),
        (100.0, [OLD], [OLD, NEW], "", Needed("reload", "/etc/new")),
        (100.0, [NEW, NEWEST], [NEW], "", Needed("restart", "/etc/newest")),
        (None, [NEW], [NEW], "", None),
        (100.0, [], [OLD, NEW], told_of([NEW, OLD], "7"), None),
        (100.0, [], [OLD, NEW], told_of([OLD, NEW], "6"), Needed("reload", "/etc/new")),  # told to a process that is gone
        (100.0, [], [OLD, NEW], told_of([OLD, NEW._replace(digest="d")], "7"), Needed("reload", "/etc/new")),
        (100.0, [], [OLD, NEW], told_of([OLD], "7"), Needed("reload", "/etc/new")),
        (100.0, [NEW], [OLD], told_of([NEW, OLD], "7"), None),  # read, and of a clock that was ahead
        (100.0, [OLD._replace(changed=99.995)], [], "", Needed("restart", "/etc/old")),  # by the kernel's tick
    ],
)
def test_a_service_has_read_what_was_there_when_it_started_or_was_told(
    started: float | None, restart: list[File], reload: list[File], told: str, expected: Needed | None
) -> None:
    assert needed(started, restart, reload, told=told, would_tell="", unit_read=False) == (started and Needed("restart", "its unit"))
    assert needed(started, restart, reload, told=told, would_tell=told_of(restart + reload, "7")) == expected

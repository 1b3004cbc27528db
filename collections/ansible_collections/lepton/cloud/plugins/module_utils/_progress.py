# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""How far a module is, while it works: told through a FIFO to its action plugin. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import Callable, Iterator

SAID = "lepton progress: "  # begins what a task says while it is under way, among all that Ansible displays


@contextmanager
def reporting(path: str | None) -> Iterator[Callable[[str], None]]:
    """Yield what takes a line of progress, and writes it to the FIFO where there is one. Nobody waits for it, and nothing depends on it."""
    try:
        pipe = None if path is None else open(path, "w", encoding="utf-8")
    except OSError:
        pipe = None

    def report(line: str) -> None:
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.write(line.replace("\n", " ") + "\n")
                pipe.flush()

    try:
        yield report
    finally:
        if pipe is not None:
            pipe.close()

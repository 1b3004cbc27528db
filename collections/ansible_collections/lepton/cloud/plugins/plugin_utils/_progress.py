# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows how far a module is while it works. PRIVATE to the collection."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterator

from ansible.utils.display import Display

from ..module_utils._progress import SAID


@contextmanager
def listening(transport: str) -> Iterator[dict[str, Any]]:
    """Yield the argument with which a module tells how far it is; {} where it runs on another machine, which a FIFO does not reach."""
    if transport != "local":
        yield {}
        return
    folder = tempfile.mkdtemp(prefix="lepton-progress")
    pipe = Path(folder) / "pipe"
    os.mkfifo(pipe, 0o600)
    # Both ends, so that neither side waits for the other to open it.
    held = os.open(pipe, os.O_RDWR)
    reader = threading.Thread(target=_show, args=(open(pipe, encoding="utf-8", errors="replace"),), daemon=True)
    reader.start()
    try:
        yield {"progress_pipe": str(pipe)}
    finally:
        os.close(held)
        reader.join(5)
        shutil.rmtree(folder, ignore_errors=True)


def without_pipe(answered: dict[str, Any]) -> dict[str, Any]:
    """Return what a module answered without the path of a FIFO that is gone."""
    (answered.get("invocation") or {}).get("module_args", {}).pop("progress_pipe", None)
    return answered


def _show(pipe: IO[str]) -> None:
    with pipe as lines:
        for line in lines:
            Display().display(SAID + line.rstrip("\n"))

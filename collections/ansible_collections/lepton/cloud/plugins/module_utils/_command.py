# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Programs that are run with a deadline, and what they print made fit to be shown. PRIVATE to the collection."""

from __future__ import annotations

import re
import subprocess
from typing import Callable, NamedTuple, Sequence

# ECMA-48: control sequences (CSI), operating system commands (OSC) such as a terminal's title, and other escapes.
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.DOTALL)


class Ran(NamedTuple):
    """What a program answered."""

    code: int
    out: str
    trouble: str


Run = Callable[..., Ran]


def run(command: Sequence[str], *, seconds: float = 60, together: bool = False, text: str | None = None) -> Ran:
    """Run a program to its end; one that has not ended after `seconds` is killed and answers 124, one that is not there 127.

    `together` puts what it writes as errors into its output, in order. `text` is its input.
    """
    try:
        # run_command has no deadline, and an engine that hangs is to be said.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            list(command),
            input=text or "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if together else subprocess.PIPE,
            timeout=seconds,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return Ran(124, "", "%s did not answer within %d s" % (command[0], seconds))
    except FileNotFoundError:
        return Ran(127, "", "there is no program %s here" % command[0])
    except PermissionError as error:
        return Ran(126, "", str(error))
    return Ran(done.returncode, done.stdout, done.stderr or "")


def clean(text: str) -> str:
    """Return a text without what would move a terminal's cursor, colour its lines or set its title."""
    return ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))

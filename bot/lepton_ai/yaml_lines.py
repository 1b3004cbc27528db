# SPDX-License-Identifier: Apache-2.0
"""On which line of a YAML file something stands, for errors that say so."""

from __future__ import annotations

from collections.abc import Sequence

import yaml


def line_of(node: yaml.Node | None, path: Sequence[int | str], line: int = 1) -> int:
    """Return the line of the deepest part of a path of keys and indices that is there; `line` where none of it is."""
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line

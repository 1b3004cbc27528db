# SPDX-License-Identifier: Apache-2.0
"""From typed words to typed arguments."""

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_playbook

from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Catalog, load_catalog
from lepton_ai.operations.parsing import ArgumentError, parse_command, split_words


def parse(catalog: Catalog, text: str) -> dict[str, Any]:
    return parse_command(catalog, split_words(text)).arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node resize web-1 vcpus=3", {"node": "web-1", "vcpus": 3}),
        ("node resize node=web-1 memory=8gib", {"node": "web-1", "memory": "8GiB"}),
        ("node resize web-1 memory='512 M' restart=yes", {"memory": "512MiB", "restart": True}),
        ("node resize “web-1” vcpus=3", {"node": "web-1"}),
        ("node create web-1 forward_ports=8080:80,8443:443", {"forward_ports": ["8080:80", "8443:443"], "vcpus": 1, "memory": "1GiB"}),
        ("node console web-1", {"console_bytes": 4000}),
    ],
)
def test_good_commands(catalog: Catalog, text: str, expected: dict[str, Any]) -> None:
    arguments = parse(catalog, text)
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a noun and a verb"),
        ("node", "a noun and a verb"),
        ("node resize web-1 vcpu=3", "vcpu: unknown parameter; did you mean vcpus"),
        ("node resize web-1 vcpus=three", "vcpus: .*unable to convert to int"),
        ("node resize web-1 memory=big", "memory: 'big' is not a size"),
        ("node resize web-1", "one of the following is required: vcpus, memory"),
        ("node resize vcpus=1", "node: is required"),
        ("node resize web-1 web-2 vcpus=1", "web-2: expected name=value"),
        ("node resize web-1 node=web-2 vcpus=1", "node is given twice"),
        ("node show 'web 1; rm -rf /'", "not a node name"),
        ("node show \"{{ lookup('pipe','id') }}\"", "not a node name"),
        ("node show we\u200bb", r"invisible character U\+200B"),
        ("node show \u202eweb", r"invisible character U\+202E"),
        ("node show " + "x" * 1001, "1001 characters are too many"),
        ("node show " + "x" * 10_000, "too many for a command"),
        ('node show "web', "No closing quotation"),
    ],
)
def test_bad_commands_are_answered_with_what_was_expected(catalog: Catalog, text: str, message: str) -> None:
    with pytest.raises(LeptonError, match=message):
        parse(catalog, text)


def test_every_wrong_argument_is_named_so_that_a_form_can_show_it_beside_its_field(catalog: Catalog) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(catalog, "node resize web-1 vcpus=x restart=maybe")
    assert {problem.parameter for problem in caught.value.problems} == {"vcpus", "restart"}


@pytest.mark.parametrize(
    ("rules", "text", "message"),
    [
        ("mutually_exclusive: [[a, b]]", "a=1 b=2", "mutually exclusive"),
        ("required_together: [[a, b]]", "a=1", "required together"),
        ("required_one_of: [[a, b]]", "", "one of the following is required"),
        ("required_if: [[a, '1', [b]]]", "a=1", "missing: b|missing required|a is 1"),
        ("required_by: {a: [b]}", "a=1", "required by 'a': b"),
    ],
)
def test_rules_between_parameters_are_checked_which_ansible_itself_does_not(tmp_path: Path, rules: str, text: str, message: str) -> None:
    write_playbook(tmp_path, "x", "y", "- name: Say\n  ansible.builtin.debug:\n    msg: x", options="{a: {type: str}, b: {type: str}}")
    meta = tmp_path / "x" / "y.meta.yml"
    meta.write_text(meta.read_text() + f"    {rules}\n")
    with pytest.raises(LeptonError, match=message):
        parse(load_catalog({"site": tmp_path}), f"x y {text}")

# SPDX-License-Identifier: Apache-2.0
"""Forms: Slack takes them whatever an operation asks for, and what is submitted comes back as it was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_playbook

from lepton_ai.operations.catalog import Catalog, Operation, load_catalog
from lepton_ai.slack.checks import BlockError, checked_message, options_trouble
from lepton_ai.slack.forms import MODE, REASON, Mode, form, options, picker, read_form

OPTIONS = """{
  word: {type: str, required: true}, number: {type: int, default: 1}, ratio: {type: float}, flag: {type: bool, default: true},
  many: {type: list, elements: str}, kind: {type: str, choices: [a, b], default: b}, secret: {type: str, no_log: true},
}"""


@pytest.fixture
def probe(tmp_path: Path) -> Operation:
    write_playbook(tmp_path, "x", "y", "- name: x", options=OPTIONS, lepton="{risk: change, plan: check, per_host: true}")
    return load_catalog({"site": tmp_path}).operations["x.y"]


def elements(view: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {block["block_id"]: block["element"] for block in view["blocks"] if block["type"] == "input"}


def test_every_operation_has_a_form_that_slack_takes(catalog: Catalog) -> None:
    for operation in catalog:
        for values in ({}, dict.fromkeys(operation.spec.options, "x" * 5000), dict.fromkeys(operation.spec.options, "<!channel>")):
            form(operation, values, {"channel": "C1"})  # which checks itself
    picker(list(catalog), {"channel": "C1"})
    picker([], {})


def test_each_type_has_its_own_input(probe: Operation) -> None:
    view = form(probe, {"number": "3", "ratio": "nonsense"}, {"channel": "C1"}, mode=Mode.CANARY)
    found = elements(view)
    assert {name: element["type"] for name, element in found.items()} == {
        "word": "plain_text_input", "number": "number_input", "ratio": "number_input", "flag": "checkboxes", "many": "plain_text_input",
        "kind": "static_select", "secret": "plain_text_input", MODE: "radio_buttons", REASON: "plain_text_input",
    }  # fmt: skip
    assert found["number"]["initial_value"] == "3"
    assert "initial_value" not in found["ratio"]
    assert found["kind"]["initial_option"]["value"] == "b"
    assert found[MODE]["initial_option"]["value"] == Mode.CANARY
    assert [option["value"] for option in found[MODE]["options"]] == [Mode.RUN, Mode.PLAN, Mode.CANARY]


def test_one_host_first_is_offered_only_where_it_can_be_done(catalog: Catalog) -> None:
    resize = elements(form(catalog.operations["node.resize"], {}, {}, mode=Mode.CANARY))[MODE]
    assert Mode.CANARY not in [option["value"] for option in resize["options"]]
    assert resize["initial_option"]["value"] == Mode.RUN
    assert MODE not in elements(form(catalog.operations["host.show"], {}, {}))


def test_what_is_submitted_is_read_back(probe: Operation) -> None:
    state = {
        "word": {"word": {"value": "w"}}, "number": {"number": {"value": "4"}}, "ratio": {"ratio": {"value": None}}, "flag": {"flag": {"selected_options": []}},
        "many": {"many": {"value": " a \n\n b"}}, "kind": {"kind": {"selected_option": {"value": "a"}}}, "secret": {"secret": {"value": ""}},
        MODE: {MODE: {"selected_option": {"value": "plan"}}}, REASON: {REASON: {"value": "because"}},
    }  # fmt: skip
    filled = read_form(probe, state)
    assert filled.values == {"word": "w", "number": "4", "flag": False, "many": ["a", "b"], "kind": "a"}
    assert (filled.mode, filled.why) == (Mode.PLAN, "because")


def test_what_slack_would_refuse_is_refused_where_it_is_built(tmp_path: Path) -> None:
    many = "{" + ", ".join(f"o{number}: {{type: str}}" for number in range(101)) + "}"
    write_playbook(tmp_path, "x", "y", "- name: x", options=many)
    with pytest.raises(BlockError, match="between 1 and 100 blocks"):
        form(load_catalog({"site": tmp_path}).operations["x.y"], {}, {})
    with pytest.raises(BlockError, match="cannot exceed 3000"):
        checked_message("x", [{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}])
    assert options_trouble(options([f"n{number}" for number in range(300)])) is None
    assert [option["value"] for option in options(["short", "x" * 151])] == ["short"]

# SPDX-License-Identifier: Apache-2.0
"""Operations are read from files; a broken file is reported and takes no other down."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._steps import PLANNERS
from tests.conftest import write_playbook

from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Catalog, Operation, load_catalog
from lepton_ai.operations.help import help_text
from lepton_ai.operations.reference import reference_page
from lepton_ai.paths import PACKAGE, builtin_playbooks

TASKS = "- name: Say\n  ansible.builtin.debug:\n    msg: hello"


def test_all_built_in_operations_are_usable_and_guarded(catalog: Catalog) -> None:
    assert not catalog.problems
    assert {noun: [operation.verb for operation in catalog.verbs(noun)] for noun in catalog.nouns()} == {
        "backup": ["list", "verify"],
        "container": ["adopt", "list", "logs", "remove", "start", "stop"],
        "deployment": ["deploy", "logs", "restart", "rollback", "scale", "show", "undeploy"],
        "host": ["drain", "evacuate", "prepare", "resume", "room", "show"],
        "monitoring": ["install"],
        "image": ["build", "list", "move", "push", "remove"],
        "node": [
            "abandon",
            "adopt",
            "backup",
            "console",
            "create",
            "list",
            "move",
            "reboot",
            "rebuild",
            "release",
            "rename",
            "resize",
            "restore",
            "revert",
            "show",
            "snapshot",
            "start",
            "stop",
        ],
        "service": ["adopt", "balance", "create", "delete", "list", "reconcile", "resize", "scale", "show", "update"],
    }
    assert all(operation.guarded for operation in catalog)
    assert {operation.name for operation in catalog if operation.spec.risk == "destroy"} == {
        "container.remove", "deployment.undeploy", "host.evacuate", "image.remove", "node.rebuild", "node.release", "node.revert", "service.delete",
    }  # fmt: skip


def test_dropping_a_file_pair_into_the_folder_is_a_new_operation(tmp_path: Path) -> None:
    write_playbook(tmp_path, "model", "greet", TASKS)
    found = load_catalog({"site": tmp_path, "built-in": builtin_playbooks()})
    assert found.find("model", "greet").origin == "site"
    assert "greet" in help_text(found, ["model"])
    assert not found.operations["model.greet"].guarded


def test_a_sites_own_operation_overrides_and_says_so(tmp_path: Path) -> None:
    write_playbook(tmp_path, "node", "list", TASKS)
    found = load_catalog({"site": tmp_path, "built-in": builtin_playbooks()})
    assert found.operations["node.list"].origin == "site"
    assert "node.list" in found.overrides[0]


def test_without_our_key_an_operation_counts_as_destroy_and_is_granted_by_name_only(tmp_path: Path) -> None:
    write_playbook(tmp_path, "x", "y", TASKS)
    meta = tmp_path / "x" / "y.meta.yml"
    meta.write_text("".join(line for line in meta.read_text().splitlines(keepends=True) if "lepton" not in line))
    spec = load_catalog({"site": tmp_path}).operations["x.y"].spec
    assert (spec.risk, spec.granted) == ("destroy", False)


@pytest.mark.parametrize(
    ("options", "lepton", "line", "reason"),
    [
        ("{timeout: {type: str}}", "{}", 6, "options.timeout: this name is Ansible's own"),
        ("{ansible_host: {type: str}}", "{}", 6, "Ansible's own"),
        ("{Big: {type: str}}", "{}", 6, "expected lower-case"),
        ("{n: {type: number}}", "{}", 6, "options.n.type: expected one of"),
        ("{n: 3}", "{}", 6, "options.n is not a mapping"),
        ("{}", "{risk: high}", 7, "lepton.risk: expected one of read, change, destroy"),
        ("{}", "{color: red}", 7, "lepton.color: unknown key"),
        ("{}", "{locks: ['node/{{ nope }}']}", 7, "nope"),
        ("{}", "{locks: node}", 7, "expected a list of strings"),
        ("{}", "{timeout: soon}", 7, "positive number of seconds"),
        ("{}", "{kinds: {n: node}}", 7, "there is no option 'n'"),
        ("{}", "{positional: [n]}", 7, "there is no option 'n'"),
        ("{}", "{per_host: often}", 7, "expected true or false"),
        ("{}", "{undo: backwards}", 7, "expected an operation such as"),
        ("{}", "{undo: bad.two}", 1, "there is no operation bad.two"),
        ("{}", "{undo: bad.one}", 1, "cannot take itself back"),
        ("{}", "{undo: good.locked}", 1, "good.locked needs locks that bad.one does not hold"),
        ("{}", "{undo: good.one, per_host: true}", 1, "good.one is one thing for all hosts"),
        ("{}", "{plan: planner, rerun: safe}", 7, "cannot be begun again"),
        ("{n: {no_log: true}}", "{plan: planner}", 6, "the steps of a plan are shown"),
    ],
)
def test_a_broken_specification_is_named_with_file_line_and_reason(tmp_path: Path, options: str, lepton: str, line: int, reason: str) -> None:
    write_playbook(tmp_path, "good", "one", TASKS)
    write_playbook(tmp_path, "good", "locked", TASKS, lepton="{risk: change, locks: [good]}")
    write_playbook(tmp_path, "bad", "one", TASKS, options=options, lepton=lepton)
    found = load_catalog({"site": tmp_path})
    assert set(found.operations) == {"good.one", "good.locked"}
    (problem,) = found.problems
    assert problem.path == tmp_path / "bad" / "one.meta.yml"
    assert problem.line == line
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a: [", "not YAML"), ("[]", "argument_specs is missing"), ("argument_specs: {two: {}}", "no entry 'one'"), ("\x00", "not YAML")],
)
def test_a_file_that_is_no_specification_is_a_problem(tmp_path: Path, content: str, reason: str) -> None:
    write_playbook(tmp_path, "bad", "one", TASKS)
    (tmp_path / "bad" / "one.meta.yml").write_text(content)
    (problem,) = load_catalog({"site": tmp_path}).problems
    assert reason in problem.reason


def test_reserved_nouns_and_missing_playbooks_are_problems(tmp_path: Path) -> None:
    write_playbook(tmp_path, "runs", "one", TASKS)
    write_playbook(tmp_path, "x", "one", TASKS)
    (tmp_path / "x" / "one.yml").unlink()
    reasons = sorted(problem.reason for problem in load_catalog({"site": tmp_path}).problems)
    assert "its playbook one.yml is missing" in reasons[0]
    assert "a word of Lepton itself" in reasons[1]


@pytest.mark.parametrize(("noun", "verb", "hint"), [("nod", "list", "did you mean node"), ("node", "rezise", "did you mean resize")])
def test_the_nearest_word_is_offered(catalog: Catalog, noun: str, verb: str, hint: str) -> None:
    with pytest.raises(LeptonError, match=hint):
        catalog.find(noun, verb)


def test_the_reference_page_is_the_generated_one(catalog: Catalog) -> None:
    assert (PACKAGE.parent.parent / "docs" / "operations.md").read_text() == reference_page(catalog), "run: make docs"


READING = {
    f"lepton.cloud.{name}"
    for name in (
        "operation",
        "locate",
        "place",
        "choose_size",
        "virtual_node_usage",
        "route_image",
        "plan",
        "virtual_node_info",
        "virtual_node_backup_info",
        "host_info",
        "container_host_info",
        "load_balancer_info",
        "model_deployment_info",
    )
}


def flat(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tasks with those in blocks in place of their blocks."""
    return [inner for task in tasks for inner in (flat(task["block"] + task.get("always", [])) if "block" in task else [task])]


@pytest.mark.parametrize(
    "operation",
    [operation for operation in load_catalog({"built-in": builtin_playbooks()}) if operation.spec.plan == "check"],
    ids=lambda operation: operation.name,
)
def test_a_playbook_keeps_what_its_plan_promises(operation: Operation) -> None:
    """Check mode tells the truth only where no task is skipped by it and none depends on what an earlier one has changed."""
    folder = operation.playbook.parent
    texts = [operation.playbook.read_text(), *(file.read_text() for file in (folder / "tasks").glob("*.yml") if file.name in operation.playbook.read_text())]
    changing = set()
    for task in (task for text in texts for play in yaml.safe_load(text) for task in flat(play.get("tasks", [play]))):
        modules = {key for key in task if key.startswith(("ansible.builtin.", "lepton.cloud."))}
        assert not modules & {"ansible.builtin.command", "ansible.builtin.shell", "ansible.builtin.raw", "ansible.builtin.script"}, task["name"]
        alike = task.get("check_mode") is False and task.get("changed_when") is False  # done in check mode too: a place for files on their way
        # Which change nothing on the host.
        archived, copied = (task.get(f"lepton.cloud.{name}", {}).get("state") for name in ("model_image_archive", "virtual_node_backup_copy"))
        fetches = archived == "saved" or copied in ("offered", "sent")
        if "register" in task and not modules <= READING and not alike and not fetches:
            changing.add(task["register"])
    assert not [name for name in changing for text in texts if f"{name}." in text], "a later task uses what a change has answered"


@pytest.mark.parametrize(
    "operation",
    [operation for operation in load_catalog({"built-in": builtin_playbooks()}) if operation.spec.plan == "planner"],
    ids=lambda operation: operation.name,
)
def test_a_composite_changes_only_by_its_steps(operation: Operation) -> None:
    """What is approved is the list of steps, so nothing else in such a playbook may change anything."""
    folder = operation.playbook.parent
    assert operation.name in PLANNERS
    plays = yaml.safe_load(operation.playbook.read_text())
    plays = [
        inner
        for play in plays
        for inner in (yaml.safe_load((folder / play["ansible.builtin.import_playbook"]).read_text()) if "ansible.builtin.import_playbook" in play else [play])
    ]
    tasks = [task for play in plays for task in play["tasks"]]
    modules = [next(key for key in task if key.startswith(("ansible.builtin.", "lepton.cloud."))) for task in tasks]
    assert set(modules) <= READING | {"ansible.builtin.import_tasks"}
    assert modules.count("lepton.cloud.plan") == 1
    (steps,) = [task for task in tasks if "ansible.builtin.import_tasks" in task]
    assert steps["ansible.builtin.import_tasks"] == "../tasks/steps.yml"
    assert plays[-1]["hosts"] == "localhost", "a step is done once, on the host that it is for"


def test_steps_are_done_in_one_place() -> None:
    """What every composite does with its steps: nothing in check mode unless a plan was handed in, and back only after trouble."""
    do, undo, say = yaml.safe_load((builtin_playbooks() / "tasks" / "steps.yml").read_text())
    assert do["when"] == "not ansible_check_mode or lepton_plan is defined"
    assert "trouble" in undo["loop"]
    assert "trouble" in say["when"]
    assert [next(key for key in task if "." in key) for task in (do, undo, say)] == [*["ansible.builtin.include_tasks"] * 2, "ansible.builtin.fail"]
    step, keep = yaml.safe_load((builtin_playbooks() / "tasks" / "step.yml").read_text())
    assert step["delegate_to"] == "{{ step.host }}"
    assert set(keep) == {"name", "ansible.builtin.set_fact", "when"}

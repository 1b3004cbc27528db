# SPDX-License-Identifier: Apache-2.0
"""What people do in Slack beside typing commands: forms, mentions, shortcuts, approvals, the Home; on a real node."""

from __future__ import annotations

import html
import re
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from tests.conftest import ROOT, eventually
from tests.end_to_end.test_survival import lepton

from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand
from lepton_ai.slack.app import SHORTCUT, SHORTCUT_HERE
from lepton_ai.slack.forms import FORM
from lepton_ai.slack.views import APPROVE, CANCEL, FILL_IN, REJECT

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]


@pytest.fixture
def ada(workspace_stand: Stand) -> Person:
    return Person(workspace_stand.base_url)


@pytest.fixture
def grace(workspace_stand: Stand) -> Person:
    return Person(workspace_stand.base_url, "U0GRACE")


@pytest.fixture
def mallory(workspace_stand: Stand) -> Person:
    return Person(workspace_stand.base_url, "U0MALLORY")


@pytest.fixture(scope="module")
def prod(workspace_stand: Stand) -> Iterator[str]:
    """A node whose name makes every change of it need approval."""
    ada, grace = Person(workspace_stand.base_url), Person(workspace_stand.base_url, "U0GRACE")
    ada.say("/lepton node create prod-1 memory=64MiB max_vcpus=4")
    grace.press(ada.wait(lambda text: "[Approve]" in text), APPROVE)
    ada.wait(lambda text: "*changed*" in text)
    yield "prod-1"
    ada.say("/lepton node release prod-1")
    grace.press(ada.wait(lambda text: "[Approve]" in text), APPROVE)
    ada.wait(lambda text: "*changed*" in text)


def virsh(stand: Stand, *words: str) -> str:
    return subprocess.run(["virsh", "-q", "-c", stand.hypervisor.uri, *words], capture_output=True, text=True, check=False).stdout.strip()


def vcpus(stand: Stand, node: str) -> str:
    return virsh(stand, "vcpucount", node, "--config", "--current")


def test_a_command_without_arguments_opens_a_form_that_says_what_is_wrong_and_then_works(workspace_stand: Stand, ada: Person) -> None:
    ada.say("/lepton node create vcpus=1")
    form = ada.view()
    assert form["title"]["text"] == "node create"
    eventually(lambda: ada.suggest(form, "image") == ["guest"])
    assert ada.suggest(form, "image", "nothing") == []
    errors = ada.fill_in(form, node="web 1; rm -rf /", memory="lots", image="guest")
    assert "is not a node name" in errors["node"]
    assert "is not a size" in errors["memory"]
    assert ada.fill_in(form, node="web-form", memory="64MiB", image="guest", **{"lepton-reason": "to try"}) == {}
    ada.wait(lambda text: "*changed*" in text and "web-form" in text)
    assert virsh(workspace_stand, "domstate", "web-form") == "running"
    # What there is now is offered at the next form, and a node that vanished meanwhile is an error of the run.
    ada.say("/lepton node release")
    release = ada.view()
    eventually(lambda: "web-form" in ada.suggest(release, "node"))
    ada.fill_in(release, node="web-form")
    ada.press(ada.wait(lambda text: "[Do it]" in text), APPROVE)
    ada.wait(lambda text: "*changed*" in text)
    assert "web-form" not in virsh(workspace_stand, "list", "--all", "--name")


def test_a_form_offers_only_what_its_filler_may_touch(grace: Person, prod: str) -> None:
    grace.channel = "C0MODELS"
    grace.say("/lepton node resize vcpus=2")
    form = grace.view()
    assert prod not in grace.suggest(form, "node")
    assert "reaches only node/web-*" in grace.fill_in(form, node=prod)["lepton-reason"]


def test_a_form_can_ask_for_the_plan_only(workspace_stand: Stand, ada: Person, prod: str) -> None:
    before = vcpus(workspace_stand, prod)
    ada.say("/lepton node resize")
    ada.fill_in(ada.view(), node=prod, vcpus=3, **{"lepton-mode": "plan"})
    ada.wait(lambda text: "*would change*" in text)
    assert vcpus(workspace_stand, prod) == before


def test_approved_by_another_and_only_once(workspace_stand: Stand, ada: Person, grace: Person, mallory: Person, prod: str) -> None:
    ada.say(f"/lepton node resize {prod} vcpus=2")
    asked = ada.seen
    plan = ada.wait(lambda text: "waits for approval" in text and "[Approve]" in text)
    assert "`vcpus` 1 → *2*" in text_of(plan)
    assert "changes 1 host" in text_of(plan)
    for person, said in ((ada, "whoever asked for something cannot approve it"), (mallory, "may approve this")):
        person.seen = plan["ts"]
        person.press(plan, APPROVE)
        person.wait(lambda text, said=said: said in text)
    ada.seen = asked
    assert vcpus(workspace_stand, prod) == "1"
    grace.press(plan, APPROVE, copies=2)
    done = ada.wait(lambda text: "*changed*" in text)
    assert "of the approved plan" in text_of(done)
    assert vcpus(workspace_stand, prod) == "2"
    ada.wait(lambda text: "approved by <@U0GRACE>" in text and "[Approve]" not in text)
    assert len([message for message in ada.answers() if "of the approved plan" in text_of(message)]) == 1


def test_rejected_and_taken_back(workspace_stand: Stand, ada: Person, grace: Person, prod: str) -> None:
    before = vcpus(workspace_stand, prod)
    for person in (grace, ada):
        ada.say(f"/lepton node resize {prod} vcpus=4")
        person.press(ada.wait(lambda text: "[Approve]" in text), REJECT)
        ada.wait(lambda text, who=person.user: f"rejected by <@{who}>" in text)
    assert vcpus(workspace_stand, prod) == before


def test_what_was_approved_is_what_runs_or_nothing_does(workspace_stand: Stand, ada: Person, grace: Person, prod: str) -> None:
    ada.say(f"/lepton node resize {prod} vcpus=4")
    plan = ada.wait(lambda text: "[Approve]" in text)
    # Meanwhile somebody else changes the same thing by hand.
    virsh(workspace_stand, "setvcpus", prod, "3", "--live", "--config")
    grace.press(plan, APPROVE)
    stopped = ada.wait(lambda text: "this is not what was approved" in text)
    assert "no longer here vcpus 2 to 4 but now here vcpus 3 to 4" in text_of(stopped)
    assert vcpus(workspace_stand, prod) == "3"


def test_a_requester_who_has_left_gets_nothing_approved(workspace_stand: Stand, ada: Person, grace: Person, prod: str) -> None:
    ada.say(f"/lepton node resize {prod} vcpus=4")
    plan = ada.wait(lambda text: "[Approve]" in text)
    before = vcpus(workspace_stand, prod)
    users = workspace_stand.sandbox.workspace.users
    users["U0ADA"]["deleted"] = True
    try:
        grace.seen = plan["ts"]
        grace.press(plan, APPROVE)
        grace.wait(lambda text: "no longer here" in text)
    finally:
        users["U0ADA"]["deleted"] = False
    assert vcpus(workspace_stand, prod) == before
    ada.press(plan, REJECT)


def test_approval_is_asked_for_at_every_door(workspace_stand: Stand, prod: str) -> None:
    before = vcpus(workspace_stand, prod)
    said = lepton(workspace_stand, "run", "node", "resize", prod, "vcpus=4", expect=6)
    assert "waits for approval" in said
    environment = {"LEPTON_SANDBOX": str(workspace_stand.folder), "LEPTON_SOCKET": str(workspace_stand.folder / "state" / "lepton.sock")}
    command = [
        ROOT / ".venv/bin/ansible-playbook",
        "-i",
        ROOT / "inventories/sandbox",
        ROOT / "playbooks/node/resize.yml",
        "-e",
        f"node={prod}",
        "-e",
        "vcpus=4",
    ]
    plain = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "HOME": "/root", **environment})
    assert plain.returncode
    assert "asks for an approval" in plain.stdout + plain.stderr
    waiting = lepton(workspace_stand, "runs", "--json", "--limit", "1")[0]["id"]
    assert "noted" in lepton(workspace_stand, "reject", waiting)
    assert "nothing to decide" in lepton(workspace_stand, "approve", waiting, expect=2)
    assert vcpus(workspace_stand, prod) == before


def test_a_freeze_stops_every_door_until_it_is_lifted(workspace_stand: Stand, ada: Person, grace: Person, prod: str) -> None:
    before = vcpus(workspace_stand, prod)
    ada.say(f"/lepton node resize {prod} vcpus=1")
    plan = ada.wait(lambda text: "[Approve]" in text)
    ada.say("/lepton freeze node/prod-* 1h the release is on")
    ada.wait(lambda text: "is frozen by slack:T0SANDBOX/U0ADA until" in text and "the release is on" in text)
    # A plan that was asked for before is released and stopped, and what is asked for now is refused.
    grace.press(plan, APPROVE)
    ada.wait(lambda text: "is frozen by" in text and "*failed*" in text)
    ada.say(f"/lepton node resize {prod} vcpus=1")
    ada.wait(lambda text: "may not node.resize" in text and "frozen" in text)
    assert "is frozen" in lepton(workspace_stand, "run", "node", "resize", prod, "vcpus=1", expect=2)
    ada.say("/lepton why")
    ada.wait(lambda text: "node.resize node/prod-1" in text and "frozen" in text)
    ada.say("/lepton node list")
    ada.wait(lambda text: prod in text)
    assert vcpus(workspace_stand, prod) == before
    ada.say("/lepton unfreeze node/prod-*")
    ada.wait(lambda text: "may change again" in text)


def test_who_may_not_freeze_is_told_so_and_why_names_the_rule(mallory: Person, grace: Person) -> None:
    mallory.say("/lepton freeze")
    mallory.wait(lambda text: "may not freeze" in text)
    grace.channel = "C0MODELS"
    grace.say("/lepton why node resize db-1 vcpus=2")
    grace.wait(lambda text: "you may not" in text and "the role builder reaches only node/web-*" in text)


def test_a_mention_works_in_a_thread_and_asks_for_what_is_missing(ada: Person, prod: str) -> None:
    ada.say("/lepton node list")
    thread = ada.wait(lambda text: "*done*" in text)
    ada.mention(f"node show {prod}", thread)
    answer = ada.wait(lambda text: "node show" in text and "*done*" in text)
    assert answer["thread_ts"] == thread["ts"]
    ada.mention("node show", thread)
    asked = ada.wait(lambda text: "[Fill in]" in text)
    assert asked["ephemeral_to"] == ada.user
    ada.press(asked, FILL_IN)
    ada.fill_in(ada.view(), node=prod)
    shown = ada.wait(lambda text: "node show" in text and prod in text and "*done*" in text)
    assert shown["thread_ts"] == thread["ts"]
    ada.mention("node shwo x", thread)
    ada.wait(lambda text: "did you mean show?" in text)


def test_shortcuts_lead_to_the_form_of_any_operation(ada: Person, mallory: Person, prod: str) -> None:
    ada.say("/lepton node list")
    message = ada.wait(lambda text: "*done*" in text)
    ada.shortcut(SHORTCUT_HERE, message)
    ada.choose(ada.view(), "node.show")
    form = eventually(lambda: view if (view := ada.view())["callback_id"] == "operation_form" else None)
    assert ada.fill_in(form, node=prod) == {}
    shown = ada.wait(lambda text: "node show" in text and "*done*" in text)
    assert shown["thread_ts"] == message["ts"]
    mallory.shortcut(SHORTCUT)
    assert "You have no role here yet" in str(mallory.view()["blocks"])


def test_home_shows_what_waits_and_answers_there(workspace_stand: Stand, ada: Person, grace: Person, prod: str) -> None:
    before = vcpus(workspace_stand, prod)
    ada.say(f"/lepton node resize {prod} vcpus=4")
    plan = ada.wait(lambda text: "[Approve]" in text)
    run_id = next(block["block_id"] for block in plan["blocks"] if block["type"] == "actions").removeprefix("run-")
    home = grace.home(lambda text: run_id in text)
    assert "[Approve] [Reject]" in str(text_of({"blocks": home["blocks"]}))
    mine = ada.home(lambda text: prod in text)
    assert f"run-{run_id}" not in [block.get("block_id") for block in mine["blocks"]]
    grace.press_home(REJECT, run_id)
    grace.home(lambda text: run_id not in text)
    ada.wait(lambda text: "rejected by <@U0GRACE>" in text)
    assert vcpus(workspace_stand, prod) == before


def test_an_expired_trigger_is_said_and_a_form_for_nobody_is_not_opened(workspace_stand: Stand, ada: Person, mallory: Person) -> None:
    httpx.post(f"{workspace_stand.base_url}people/fault", json={"expired_triggers": 1}).raise_for_status()
    ada.say("/lepton node show")
    ada.wait(lambda text: "did not open the form (expired_trigger_id)" in text)
    mallory.say("/lepton node show")
    mallory.wait(lambda text: "no grant names" in text or "is required" in text)
    assert not [view for view in mallory.state()["views"].values() if view["opened_by"] == mallory.user and view["callback_id"] == FORM]


def test_what_is_scheduled_waits_and_can_be_canceled(ada: Person) -> None:
    ada.say("/lepton at 02:00 node show nothing")
    scheduled = ada.wait(lambda text: "scheduled for" in text)
    ada.press(scheduled, CANCEL)
    ada.wait(lambda text: "*canceled*" in text)
    ada.say("/lepton at noon node show nothing")
    ada.wait(lambda text: "say when" in text)
    for line in ("plan canary node abandon web-1", "canary plan node abandon web-1"):
        ada.say(f"/lepton {line}")
        ada.wait(lambda text: "cannot both be done" in text)
    ada.say("/lepton canary node create")
    ada.wait(lambda text: "node.create is one thing for all hosts" in text)


def test_why_a_run_failed_stands_whole_in_its_thread(workspace_stand: Stand, ada: Person) -> None:
    ada.say("/lepton node show nothing-here")
    failed = ada.wait(lambda text: "*failed*" in text)
    (file,) = eventually(lambda: [message["files"][0] for message in ada.answers() if message.get("thread_ts") == failed["ts"] and message.get("files")])
    content = httpx.get(file["url_private"]).text
    assert file["name"] == "ansible.txt"
    assert "PLAY RECAP" in content


def test_a_picture_shows_what_hosts_have_left(ada: Person) -> None:
    ada.say("/lepton host show")
    done = ada.wait(lambda text: "MEMORY FREE" in text)
    (file,) = eventually(lambda: [message["files"][0] for message in ada.answers() if message.get("thread_ts") == done["ts"] and message.get("files")])
    assert file["name"] == "capacity.png"
    assert re.fullmatch(r"here: \d+% of memory and \d+% of vCPUs given", file["alt_txt"])
    assert httpx.get(file["url_private"]).content.startswith(b"\x89PNG")


def test_how_many_nodes_would_fit_is_said_host_by_host(ada: Person) -> None:
    ada.say("/lepton host room 2 memory=16MiB")
    done = str(ada.wait(lambda text: "WOULD FIT" in text)["blocks"])
    assert re.search(r"here +2", done), done
    ada.say("/lepton host room memory=900GiB")
    short = str(ada.wait(lambda text: "WOULD FIT" in text and "900GiB" in text)["blocks"])
    assert re.search(r"here +0 +it has \S+ free of 900GiB", short), short


def test_the_message_leads_to_the_runs_page_for_who_has_come_in(ada: Person, mallory: Person, prod: str) -> None:
    ada.say(f"/lepton node show {prod}")
    done = ada.wait(lambda text: "*done*" in text)
    found = re.search(r"<(http[^|>]*)\|", str(done["blocks"]))
    assert found is not None
    page = html.unescape(found[1])
    assert httpx.get(page).status_code == 401
    for person, status in ((mallory, 403), (ada, 200)):
        person.say("/lepton login")
        told = person.wait(lambda text: "Your way in" in text)
        assert told["ephemeral_to"] == person.user
        way_in = re.search(r"<(http[^|>]*)\|", told["text"])
        assert way_in is not None
        with httpx.Client(follow_redirects=True) as browser:
            door = browser.get(html.unescape(way_in[1]))
            ticket = re.search(r'name="ticket" value="([^"]*)"', door.text)
            assert ticket is not None
            browser.post(str(door.url).partition("?")[0], data={"ticket": ticket[1]}).raise_for_status()
            shown = browser.get(page)
        assert shown.status_code == status
        assert ("Find the one host that has it" in shown.text) == (status == 200)

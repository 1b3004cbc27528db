# SPDX-License-Identifier: Apache-2.0
"""A new site: the folder in which a team keeps its settings, hosts and own playbooks."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

from lepton_ai.errors import LeptonError
from lepton_ai.paths import example_inventory
from lepton_ai.settings import CASES_FILE, SITE_FILE

SETTINGS = """\
# A Lepton site. Secrets do not belong here: SLACK_BOT_TOKEN, SLACK_APP_TOKEN, SLACK_SIGNING_SECRET and LEPTON_ALERT_TOKEN come
# from the environment.
inventory: inventory
playbooks: playbooks
state_dir: .lepton

slack:
  mode: socket  # or http, with SLACK_SIGNING_SECRET and a public address

access:
  roles:
    operator:
      operations: ["*"]
    viewer:
      operations: ["node.list", "node.show", "host.show"]
    mender:
      operations: ["service.reconcile"]
    web-builder:
      operations: ["node.resize", "node.start", "node.stop"]
      targets: ["node/web-*"]
  # Nobody may do anything until a grant says so. Principals: slack:TEAM/USER, slack-group:TEAM/GROUP, os:UID@HOST.
  grants:
    - {role: mender, principals: ["schedule:reconcile"]}  # replaces replicas that have died
  #  - role: operator
  #    principals: ["slack:T012345/U012345"]
  #    channels: ["C012345"]
  # What needs somebody else's agreement; docs/approvals.md has all conditions.
  approvals: []
  #  - name: prod
  #    targets: ["node/prod-*"]
  #    approvers: ["slack:T012345/U012345"]

# What alerts ask for, as alert:RECEIVER, which needs a grant like everybody. Try it: lepton simulate alert FILE
alerts: []
#  - name: more-memory
#    matchers: ['alertname="NodeMemoryHigh"', 'severity=~"page|warn"']
#    operation: node.resize
#    arguments: {node: {label: node}, memory: 4GiB}
"""
CASES = """\
# Who may do what, as tests: lepton access test
- {who: "slack:T012345/U099999", asks: "node list", expect: refused, rule: "no grant names"}
"""


def make_site(folder: Path) -> list[Path]:
    """Write a new site into `folder` and return what was written; an existing site is left alone."""
    if (folder / SITE_FILE).exists():
        raise LeptonError(f"{folder / SITE_FILE} exists already, and is left as it is")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SITE_FILE).write_text(SETTINGS)
    (folder / CASES_FILE).write_text(CASES)
    shutil.copytree(example_inventory(), folder / "inventory", dirs_exist_ok=True)
    (folder / "playbooks").mkdir(exist_ok=True)
    (folder / ".gitignore").write_text(".lepton/\n")
    (folder / "slack-manifest.yml").write_text((files("lepton_ai.slack") / "manifest.yml").read_text())
    return [folder / name for name in (SITE_FILE, CASES_FILE, "inventory", "playbooks", ".gitignore", "slack-manifest.yml")]

# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nodes of all hosts as hosts of the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: virtual_nodes
short_description: The nodes of all hosts as hosts of the inventory
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Asks every host of a group that stands in the inventory already, all at once, and adds the nodes that M(lepton.cloud.virtual_node) made.
  - A host that does not answer in time is said, and hides no other.
  - Each node is in the group C(virtual_nodes), and in one for its host, its state, its service and each of its labels, such as C(host_kvm1),
    C(state_running), C(service_chat) and C(label_team_search).
  - The file's name must end in C(virtual_nodes.yml) or C(virtual_nodes.yaml). Sources are read in the order of their names, so it comes after
    the hosts.
extends_documentation_fragment:
  - constructed
  - inventory_cache
options:
  plugin:
    description:
      - The name of this plugin.
    type: str
    required: true
    choices: [lepton.cloud.virtual_nodes]
  hosts_group:
    description:
      - The group of hosts that carry nodes.
    type: str
    default: hypervisors
  uris:
    description:
      - How this machine reaches libvirt of a host, by the host's name. Where none is given, that is C(lepton_host.uri) of a host with a local
        connection, and C(qemu+ssh://ansible_user@ansible_host/system) of any other.
    type: dict
    default: {}
  interpreter:
    description:
      - A Python of this machine that has libvirt's bindings, which distributions package for their own.
    type: path
    default: /usr/bin/python3
  deadline:
    description:
      - How many seconds a host may take to answer.
    type: float
    default: 10
"""

EXAMPLES = r"""
# inventories/site/z_virtual_nodes.yml
plugin: lepton.cloud.virtual_nodes
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/lepton/nodes
cache_timeout: 60
keyed_groups:
  - key: lepton_node.image
    prefix: image
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterable, Mapping

from ansible.errors import AnsibleParserError
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

from ..module_utils._node import NodeError, check_name
from ..module_utils._placement import SERVICE_LABEL

SUFFIXES = ("virtual_nodes.yml", "virtual_nodes.yaml")
PROGRAM = "ansible_collections.lepton.cloud.plugins.module_utils._listing"
AT_ONCE = 32  # processes
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 5))  # the folder of ansible_collections


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Adds nodes to the inventory. Whatever a host tells of them is data: core does not template what a plugin brings."""

    NAME = "lepton.cloud.virtual_nodes"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path) and path.endswith(SUFFIXES))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path)
        self._read_config_data(path)
        self.load_cache_plugin()
        key, cached = self.get_cache_key(path), bool(self.get_option("cache"))
        known = dict(self._cache.get(key, {})) if cached and cache else {}
        uris = self._uris()
        asked = {host: uri for host, uri in uris.items() if known.get(host, {}).get("uri") != uri}
        told = {**{host: known[host] for host in uris if host not in asked}, **self._ask(asked)}
        for host in sorted(told):
            if "nodes" not in told[host]:
                self.display.warning("%s did not tell of its nodes: %s" % (host, told[host]["msg"]))
        answered = {host: answer for host, answer in told.items() if "nodes" in answer}
        if cached:
            self._cache[key] = answered  # a host that did not answer is asked again
        self._fill(answered)

    def _uris(self) -> dict[str, str]:
        name = self.get_option("hosts_group")
        if name not in self.inventory.groups:
            raise AnsibleParserError("the inventory has no group %s: name the file of its hosts so that it is read before this one" % name)
        given = self.get_option("uris")
        return {host.name: str(given.get(host.name) or self._uri(host)) for host in self.inventory.groups[name].get_hosts()}

    def _uri(self, host: Any) -> str:
        """Return how this machine reaches a host's libvirt, by its variables."""
        variables: dict[str, Any] = {}
        for group in sorted(host.get_groups(), key=lambda group: (group.depth, group.name)):
            variables.update(group.get_vars())
        variables.update(host.get_vars())
        self.templar.available_variables = variables
        options = self.templar.template(variables.get("lepton_host") or {})
        if variables.get("ansible_connection") == "local" or "+" in str(options.get("uri", "")).partition("://")[0]:
            return str(options.get("uri") or "qemu:///system")
        user = self.templar.template(variables.get("ansible_user"))
        address = self.templar.template(variables.get("ansible_host")) or host.name
        port = self.templar.template(variables.get("ansible_port"))
        return "qemu+ssh://%s%s%s/system" % ("%s@" % user if user else "", address, ":%s" % port if port else "")

    def _ask(self, uris: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Ask hosts for their nodes, all at once."""
        with ThreadPoolExecutor(min(AT_ONCE, len(uris)) or 1) as pool:
            return dict(zip(uris, pool.map(self._listing, uris.values())))  # noqa: B905 -- Python 3.9 has no strict

    def _listing(self, uri: str) -> dict[str, Any]:
        seconds = self.get_option("deadline")
        # A path of their own, and nothing of this process' secrets. What ssh needs, its agent and its keys, is there.
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "USER", "LANG", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR") if name in os.environ}
        command = [self.get_option("interpreter"), "-m", PROGRAM, uri]
        try:
            done = subprocess.run(
                command, env={**environment, "PYTHONPATH": ROOT}, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"msg": "no answer within %g s at %s" % (seconds, uri)}
        except OSError as error:
            return {"msg": "%s: %s" % (command[0], error.strerror)}
        try:
            return dict(json.loads(to_text(done.stdout)), uri=uri)
        except ValueError:
            last = to_text(done.stderr).strip().rpartition("\n")[2]
            return {"msg": "%s at %s" % (last or "no answer", uri)}

    def _fill(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        places: dict[str, str] = {}
        self.inventory.add_group("virtual_nodes")
        for host, answer in sorted(told.items()):
            for node in answer["nodes"]:
                name = node["name"]
                try:
                    check_name(name)
                except NodeError as error:
                    self.display.warning("a node of %s is left out: %s" % (host, error))
                    continue
                if name in places or (name in self.inventory.hosts and name not in self.inventory.groups["virtual_nodes"].get_hosts()):
                    self.display.warning("a node of %s is left out: %s is %s" % (host, name, "on %s too" % places[name] if name in places else "another host"))
                    continue
                places[name] = host
                self._add(name, host, node)

    def _add(self, name: str, host: str, node: Mapping[str, Any]) -> None:
        self.inventory.add_host(name, group="virtual_nodes")
        variables = {"lepton_node": dict(node, host=host), **_reached(node)}
        for variable, value in variables.items():
            self.inventory.set_variable(name, variable, value)
        for group in _groups(host, node):
            self.inventory.add_host(name, group=self.inventory.add_group(self._sanitize_group_name(group)))
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)


def _reached(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return where ssh reaches a node, where that is known."""
    addresses = node.get("addresses") or ()
    return {"ansible_host": addresses[0]} if addresses else {}


def _groups(host: str, node: Mapping[str, Any]) -> Iterable[str]:
    labels = node.get("labels") or {}
    yield "host_%s" % host
    yield "state_%s" % node["state"]
    if SERVICE_LABEL in labels:
        yield "service_%s" % labels[SERVICE_LABEL]
    for label, value in sorted(labels.items()):
        if not label.startswith("cloud.lepton."):
            yield "label_%s_%s" % (label, value)

# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options shared by every module that talks to a container engine."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  engine:
    description:
      - Whose command is used on the host. V(auto) takes Docker where there is one, and else Podman.
    type: str
    choices: [auto, docker, podman]
    default: auto
  engine_address:
    description:
      - Where the engine listens, such as V(unix:///run/user/1000/docker.sock), where that is not its default.
    type: str
  state_dir:
    description:
      - Folder on the host for locks and for the secrets of containers.
    type: path
    default: /var/lib/lepton
  address:
    description:
      - The address under which load balancers reach what containers of this host publish.
    type: str
    default: 127.0.0.1
  port_range:
    description:
      - Ports of the host that replicas of services are published on.
    type: str
    default: 20000-20999
  cpu_overcommit:
    description:
      - How many CPUs the host may give to containers for each one it has.
    type: float
    default: 4
  memory_reserve:
    description:
      - Memory that is kept for the host itself. The rest may be given to containers, and is never overcommitted.
    type: str
    default: 1GiB
requirements:
  - Docker 20.10 or later, or Podman 4.3 or later, on the managed host
"""

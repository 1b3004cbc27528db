# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options shared by every module that talks to a load balancer."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  socket_address:
    description:
      - HAProxy's Runtime API, with the level admin. A path, or HOST:PORT where it listens on TCP.
    type: str
    default: /run/haproxy/admin.sock
  master_socket:
    description:
      - The socket of HAProxy's master process (C(haproxy -W -S PATH)), by which it is reloaded.
    type: path
    default: /run/haproxy-master.sock
  config:
    description:
      - HAProxy's own configuration file. It is read to check new ones together with it, and never written.
    type: path
    default: /etc/haproxy/haproxy.cfg
  services_dir:
    description:
      - Folder of the services' configuration files, which HAProxy is started with as a second C(-f).
    type: path
    default: /etc/haproxy/lepton.d
  state_file:
    description:
      - What HAProxy reads the state of its servers from at a reload, C(server-state-file) in its configuration.
    type: path
    default: /var/lib/haproxy/lepton-server-state
  listen_address:
    description:
      - The address that services listen on for their clients. V(*) for all.
    type: str
    default: 127.0.0.1
requirements:
  - HAProxy 2.6 or later on the managed host, in master-worker mode
"""

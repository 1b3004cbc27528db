# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options shared by every module that talks to a hypervisor."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt connection of the host, as the host itself would write it. With the URI of another machine, such as
        V(qemu+ssh://root@kvm1/system), images, disks and console logs are reached as libvirt's storage volumes.
    type: str
    default: qemu:///system
  image_dir:
    description:
      - Folder on the host that holds images. An image is a qcow2 file, or a folder with V(vmlinuz), V(initrd.img) and
        optionally V(cmdline) and V(disk.qcow2).
    type: path
    default: /var/lib/lepton/images
  disk_dir:
    description:
      - Folder on the host for the disks and console logs of nodes.
    type: path
    default: /var/lib/lepton/disks
  cpu_overcommit:
    description:
      - How many vCPUs the host may give for each of its CPUs.
    type: float
    default: 4
  memory_reserve:
    description:
      - Memory that is kept for the host itself. The rest may be given to nodes, and is never overcommitted.
    type: str
    default: 1GiB
  address:
    description:
      - The address of the host under which load balancers reach what it forwards to nodes.
    type: str
    default: 127.0.0.1
  port_range:
    description:
      - Ports of the host that are forwarded to replicas of services.
    type: str
    default: 21000-21999
  migration_uri:
    description:
      - Where the libvirt of other hosts reaches this one's, such as V(qemu+tls://kvm1/system) or V(qemu+ssh://root@kvm1/system). Without it
        no running node comes here from another host.
    type: str
requirements:
  - python3-libvirt on the managed host
"""

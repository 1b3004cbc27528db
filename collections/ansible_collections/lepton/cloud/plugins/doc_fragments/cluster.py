# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options shared by every module that talks to a Kubernetes cluster."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  kubeconfig:
    description:
      - The kubeconfig. C(KUBECONFIG) or C(~/.kube/config) where neither this nor O(api_server) is given.
    type: path
  context:
    description:
      - Which of its contexts. The current one where none is given.
    type: str
  namespace:
    description:
      - The namespace. That of the context where none is given, and C(default) where that has none.
    type: str
  api_server:
    description:
      - Address of the API server, such as V(https://10.0.0.1:6443), in place of a kubeconfig.
    type: str
  token:
    description:
      - Token of who asks, with O(api_server). It is shown nowhere.
    type: str
  ca_cert:
    description:
      - The certificate authority of the API server, with O(api_server).
    type: path
  validate_certs:
    description:
      - Whether the API server's certificate is checked, with O(api_server).
    type: bool
    default: true
  request_seconds:
    description:
      - How long the API server may take to answer.
    type: int
    default: 30
requirements:
  - kubernetes >= 34 (Python)
"""

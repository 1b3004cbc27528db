# SPDX-License-Identifier: Apache-2.0
"""`python -m lepton_ai` is the command `lepton`."""

from lepton_ai.cli import main

main()

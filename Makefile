# SPDX-License-Identifier: Apache-2.0
.PHONY: demo demo-clean test check docs

demo:  ## A Slack workspace, a hypervisor and the bot, to try; SCRIPT=1 plays the tour by itself
	@tools/setup demo
	@.venv/bin/lepton sandbox $(if $(SCRIPT),--script)

demo-clean:  ## End and remove everything that the demo made
	@.venv/bin/lepton sandbox --clean

test:  ## Everything that can run here, against real components
	@tools/setup test
	@.venv/bin/pytest $(ARGS)

check:  ## The fast loop: linters, types and the tests that need nothing
	@tools/setup test
	@.venv/bin/pytest -m "not libvirt and not browser and not postgres and not ssh and not docker and not haproxy and not slow" $(ARGS)

docs:  ## Regenerate the reference pages
	@tools/setup test
	@.venv/bin/lepton operations --reference > docs/operations.md

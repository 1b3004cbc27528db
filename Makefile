# SPDX-License-Identifier: Apache-2.0
.PHONY: demo demo-clean test test-kubernetes test-kubernetes-build test-xen test-debian test-images test-chain check docs

demo:  ## A Slack workspace, a hypervisor and the bot, to try; SCRIPT=1 plays the tour by itself
	@tools/setup demo
	@.venv/bin/lepton sandbox $(if $(SCRIPT),--script)

demo-clean:  ## End and remove everything that the demo made
	@.venv/bin/lepton sandbox --clean

# The linters keep a core busy while the tests wait for guests to boot, so they run beside them, and are shown at the end.
test:  ## Everything that can run here, against real components
	@tools/setup test
	@mkdir -p .cache
	@nice -n 19 .venv/bin/pytest -m checks $(ARGS) >.cache/checks.log 2>&1 & checks=$$!; \
	.venv/bin/pytest -m "not checks and not kubernetes and not xen and not debian" $(ARGS); result=$$?; \
	wait $$checks || result=$$?; cat .cache/checks.log; exit $$result

test-kubernetes:  ## Deployments, on a control plane that is built once; ten minutes for that, and as many for the tests
	@tools/setup test
	@.venv/bin/pytest -m kubernetes $(ARGS)

test-kubernetes-build:  ## Only the building
	@tools/setup test
	@.venv/bin/python -m tests.kubernetes.cluster

test-xen:  ## Nodes on a host with Xen, which is built once; five minutes
	@tools/setup test
	@.venv/bin/pytest -m xen $(ARGS)

test-debian:  ## A Debian that the roles prepare, and a node with its cloud-init, fetched once; a quarter of an hour
	@tools/setup test
	@.venv/bin/pytest -m debian $(ARGS)

check:  ## The fast loop: linters, types and the tests that need nothing
	@tools/setup test
	@.venv/bin/pytest -m "not libvirt and not browser and not postgres and not ssh and not docker and not haproxy and not kubernetes and not xen and not debian and not prometheus and not slow" $(ARGS)

test-images:  ## Images of all three frameworks, built, started and asked; fetches a gigabyte
	@tools/setup test
	@.venv/bin/python tests/benchmarks/images.py

test-chain:  ## A node with Debian, Docker inside it, a model in a container there, HAProxy before it; takes a quarter of an hour
	@tools/setup test
	@.venv/bin/python tests/benchmarks/chain.py

docs:  ## Regenerate the reference pages and Grafana's dashboards
	@tools/setup test
	@.venv/bin/lepton operations --reference > docs/operations.md
	@.venv/bin/python tools/dashboards.py

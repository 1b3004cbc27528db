# SPDX-License-Identifier: Apache-2.0
"""The operations on a real control plane by all doors: ansible-playbook, Slack, the CLI of the guide, Python. Two clusters are two namespaces here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import ROOT, eventually
from tests.kubernetes.conftest import Namespace
from tests.warm import ansible

from lepton_ai.automation import Deployment
from lepton_ai.errors import LeptonError
from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import stand, stop_stand

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]
GUIDE = ROOT / "docs/deployments.md"


def write_inventory(path: Path, clusters: dict[str, Namespace], deployments: dict[str, Any] | None = None) -> Path:
    declared = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}", "lepton_deployments": deployments or {}}
    hosts = {name: {"lepton_cluster": {"kubeconfig": str(each.cluster.kubeconfig), "namespace": each.name}} for name, each in clusters.items()}
    path.write_text(yaml.safe_dump({"clusters": {"hosts": hosts, "vars": declared}}))
    return path


@pytest.fixture
def site(namespace: Namespace) -> Iterator[Path]:
    """A site with one cluster and what the guide declares."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    (declared,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    deployments = declared["clusters"]["vars"]["lepton_deployments"]
    deployments["chat"]["stuck_seconds"] = 2
    inventory = write_inventory(folder / "hosts.yml", {"gpu": namespace}, deployments)
    (folder / "lepton.yml").write_text(yaml.safe_dump({"inventory": str(inventory)}))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def playbook(inventory: Path, verb: str, *options: str, check: bool = False, **arguments: Any) -> str:
    words = ["-i", inventory, ROOT / f"playbooks/deployment/{verb}.yml", "-e", json.dumps(arguments), *options, *(["--check", "--diff"] if check else [])]
    done = ansible("ansible-playbook", words, cwd=ROOT, env=dict(os.environ), timeout=200)
    return done.stdout + done.stderr


def test_the_playbooks_by_themselves(namespace: Namespace, site: Path) -> None:
    inventory = site / "hosts.yml"
    before = namespace.everything()
    planned = playbook(inventory, "deploy", check=True, deployment="chat")
    assert '"image": "models/chat:1"' in planned
    assert "changed=1" in planned
    assert namespace.everything() == before
    told = playbook(inventory, "deploy", deployment="chat")
    assert "lepton progress: 2/2 ready" in told
    assert namespace.ready() == 2
    assert "changed=0" in playbook(inventory, "deploy", deployment="chat")
    assert "changed=1" in playbook(inventory, "scale", deployment="chat", replicas=3)
    assert namespace.ready() == 3
    assert "changed=1" in playbook(inventory, "deploy", deployment="chat", image="models/chat:2")
    assert namespace.ready() == 3  # as many as were last asked for
    assert "changed=1" in playbook(inventory, "rollback", deployment="chat")
    assert namespace.image() == "models/chat:1"
    assert "changed=1" in playbook(inventory, "restart", deployment="chat")
    assert "listening on 8080" in playbook(inventory, "logs", "-v", deployment="chat")
    failed = playbook(inventory, "deploy", deployment="chat", image="no.invalid/chat:1")
    assert "ImagePullBackOff" in failed
    assert "It is back at models/chat:1: 3/3 ready" in failed
    assert "no host has a deployment nothing" in playbook(inventory, "show", deployment="nothing")
    assert "is not a deployment name" in playbook(inventory, "deploy", deployment="Chat {{ 1 }}")
    assert "changed=1" in playbook(inventory, "undeploy", deployment="chat")
    assert namespace.kinds() == set()
    assert "changed=0" in playbook(inventory, "undeploy", deployment="chat")


def test_which_cluster_is_meant(namespace: Namespace, tmp_path: Path) -> None:
    away = Namespace(namespace.cluster, f"{namespace.name}-b")
    namespace.cluster.kubectl("create", "namespace", away.name)
    try:
        inventory = write_inventory(tmp_path / "hosts.yml", {"near": namespace, "far": away})
        asked = playbook(inventory, "deploy", deployment="chat", image="model:1")
        assert "name one of far, near" in asked
        assert "there is no host nowhere" in playbook(inventory, "deploy", deployment="chat", image="model:1", cluster="nowhere")
        assert "changed=1" in playbook(inventory, "deploy", deployment="chat", image="model:1", cluster="far")
        assert namespace.kinds() == set()
        assert "changed=1" in playbook(inventory, "scale", deployment="chat", replicas=2)  # there is only one, and it is found
        assert away.ready() == 2
        assert "changed=1" in playbook(inventory, "deploy", deployment="chat", image="model:1", cluster="near")
        both = playbook(inventory, "scale", deployment="chat", replicas=1)
        assert re.search(r"several hosts have a deployment chat: far \(\w+\), near \(\w+\)", both), both
        assert "changed=1" in playbook(inventory, "scale", deployment="chat", replicas=3, cluster="near")
        assert (namespace.ready(), away.ready()) == (3, 2)
    finally:
        namespace.cluster.kubectl("delete", "namespace", away.name, "--wait=false")


def test_the_commands_of_the_guide_and_python(namespace: Namespace, site: Path) -> None:
    """Every command of the page, in its order, and every line of its Python."""
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}", "LEPTON_SITE": str(site)}
    (commands,) = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for line in commands.splitlines():
        done = subprocess.run(["bash", "-c", line], cwd=site, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert namespace.kinds() == set()
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    subprocess.run([ROOT / ".venv/bin/python", "-c", program], env=environment, cwd=site, check=True, timeout=120)
    with pytest.raises(LeptonError, match="ImagePullBackOff"):
        Deployment(site=site).deploy("chat", image="no.invalid/chat:1")
    eventually(lambda: namespace.kinds() == set())


def test_a_rollout_shows_in_slack_while_it_is_under_way(namespace: Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    slow = {"image": "model:slow", "replicas": 3, "merge": {"Deployment": {"spec": {"template": {"metadata": {"annotations": {"lepton.test/start": "3s"}}}}}}}
    try:
        with stand(folder, start_bot=False) as running:
            inventory = write_inventory(folder / "clusters.yml", {"gpu": namespace}, {"chat": slow})
            settings = yaml.safe_load((running.site / "lepton.yml").read_text())
            (running.site / "lepton.yml").write_text(yaml.safe_dump({**settings, "inventory": str(inventory)}))
            running.start_bot()
            ada = Person(running.base_url)
            ada.say("/lepton deployment deploy chat")
            eventually(lambda: " · 0/3 ready" in json.dumps(ada.state(), ensure_ascii=False))  # in the thread's list of tasks
            ada.wait(lambda text: "*changed*" in text)
            assert namespace.ready() == 3
            ada.say("/lepton deployment show chat")
            told = text_of(ada.wait(lambda text: "REVISION" in text))
            assert "model:slow" in told
            ada.say("/lepton deployment deploy chat image=model:crash")
            ada.wait(lambda text: "it ended with exit code 3: no GPU is there" in text and "It is back at model:slow" in text)
            ada.say("/lepton deployment undeploy chat")
            ada.wait(lambda text: "Do it" in text)
            assert namespace.kinds() >= {"Deployment"}
    finally:
        stop_stand(folder)
        shutil.rmtree(folder, ignore_errors=True)

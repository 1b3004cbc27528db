# SPDX-License-Identifier: Apache-2.0
"""Images built on a real engine: what the module says is compared with what the engine, the image and its server say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import ROOT, ContainerHost, eventually

from lepton_ai.sandbox.stand import free_port

pytestmark = [pytest.mark.docker, pytest.mark.slow]
MODELS = ROOT / "inventories" / "models"
SIX = (
    "six==1.17.0 --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274"
    " --hash=sha256:ff70335d468e7eb6ec65b95b99d3a2836546063f63acc5171de367e834932a81\n"
)
SERVER = """
import json, os, http.server
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(os.environ.get("STATUS", "200")))
        self.end_headers()
        self.wfile.write(json.dumps({"uid": os.getuid(), "here": sorted(os.listdir("."))}).encode())
    def log_message(self, *_): pass
print("serving", flush=True)
http.server.HTTPServer(("0.0.0.0", 8080), Answers).serve_forever()
"""


@pytest.fixture(autouse=True)
def _images(host: ContainerHost) -> Iterator[None]:
    yield
    names = host.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    ours = [name for name in names if name.startswith(("models/", "lepton-candidate"))]
    for name in host.docker("ps", "--all", "--quiet").split():
        host.docker("rm", "--force", "--volumes", name)
    if ours:
        host.docker("rmi", "--force", *ours)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a server of its own, for which nothing need be installed."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "server.py").write_text(SERVER)
    return folder


def wish(folder: Path, **more: Any) -> dict[str, Any]:
    given = {"name": "models/echo:1", "framework": "command", "source": str(folder), "command": ["python3", "server.py"], "base": "python:sandbox"}
    return {**given, **more}


def all_there_is(host: ContainerHost) -> str:
    """Return every image, container and file that a change would show in."""
    return "\n".join(host.images()) + host.everything()


def image(host: ContainerHost, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.docker("image", "inspect", name))[0]
    return found


@pytest.mark.timeout(600)
def test_an_onnx_model_from_its_file_to_an_answer(host: ContainerHost) -> None:
    given = {"name": "models/weights:1", "framework": "onnx", "source": str(MODELS / "onnx"), "base": "python:sandbox", "licence": "Apache-2.0"}
    before = all_there_is(host)
    planned = host.module("model_image", check=True, **given)
    assert planned["changed"], planned
    assert all_there_is(host) == before
    made = host.module("model_image", **given)
    assert made["changed"], made
    assert made["changes"] == planned["changes"]
    seen = image(host, "models/weights:1")
    assert (seen["Id"], seen["Size"]) == (made["image"]["id"], made["image"]["size"])
    assert seen["Config"]["User"] == "65532:65532"
    labels = seen["Config"]["Labels"]
    assert (labels["org.opencontainers.image.version"], labels["org.opencontainers.image.licenses"], labels["cloud.lepton.model"]) == (
        "1",
        "Apache-2.0",
        "weights",
    )
    assert labels["cloud.lepton.source"].startswith("sha256:")
    assert {layer["name"] for layer in made["layers"]} == {"requirements", "server", "model", "bill of materials"}
    again = host.module("model_image", **given)
    assert not again["changed"]
    assert image(host, "models/weights:1") == seen
    assert not [name for name in host.docker("images", "--format", "{{.Repository}}").split() if "candidate" in name]

    port = free_port()
    serving = {"image": "models/weights:1", "ports": [f"{port}:8080"], "health_path": "/v2/health/ready", "health_port": 8080}
    assert host.container("one", state="healthy", **serving)["changed"]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5)
    request = json.loads((MODELS / "onnx" / "example.json").read_text())
    answer = client.post("/v2/models/weights/infer", json=request)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["shape"] == [1, 3]
    assert client.get("/v2/models/weights/ready").status_code == 200
    assert client.post("/v2/models/weights/infer", json={"inputs": []}).status_code == 400
    assert client.post("/v2/repository/models/weights/unload").status_code >= 400
    assert client.get("/v2/health/ready").status_code == 200
    metrics = client.get("/metrics").text
    for name in ("model_server_requests_in_progress", "model_requests_waiting", "model_requests_running", "model_server_request_duration_seconds_bucket"):
        assert name in metrics
    process = host.docker("exec", "one", "python3", "-c", "import os; print(os.getuid(), open('/proc/1/status').read())")
    assert process.startswith("65532")
    assert "CapEff:\t0000000000000000" in process
    # Nothing of the build is left: no pip, no compiler, no cache.
    assert "No module named pip" in host.docker("exec", "one", "python3", "-m", "pip")
    sbom = json.loads(host.docker("exec", "one", "python3", "-c", "print(open('/opt/lepton/sbom.cdx.json').read())"))
    script = "import importlib.metadata as m, json; print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"
    installed = json.loads(host.docker("exec", "one", "python3", "-c", script))
    listed = [item["purl"] for item in sbom["components"] if item.get("purl", "").startswith("pkg:pypi/")]
    assert len(listed) == len(installed) > 40
    assert any(item.get("purl", "").startswith("pkg:deb/debian/libc6@") for item in sbom["components"])


def test_the_same_inputs_give_the_same_image_and_another_version_shares_what_is_dear(host: ContainerHost, source: Path, tmp_path: Path) -> None:
    (source / "requirements.txt").write_text(SIX)
    first = host.module("model_image", **wish(source, requirements="requirements.txt"))
    assert first["changed"], first
    # Anew, by somebody who has nothing of it yet: not even the layer of requirements.
    host.docker("rmi", "models/echo:1")
    elsewhere = host.module("model_image", **wish(source, requirements="requirements.txt", state_dir=str(tmp_path / "other")))
    assert elsewhere["image"]["id"] == first["image"]["id"]
    layers = image(host, "models/echo:1")["RootFS"]["Layers"]
    (source / "weights.bin").write_bytes(b"2" * 1000)
    second = host.module("model_image", **wish(source, requirements="requirements.txt", name="models/echo:2"))
    assert {change["field"] for change in second["changes"]} >= {"source", "version"}
    assert image(host, "models/echo:2")["RootFS"]["Layers"][:-2] == layers[:-2]
    # The same tag with another content is a change, and the one that it replaces is not left behind.
    changed = host.module("model_image", **wish(source, requirements="requirements.txt"))
    assert [change["field"] for change in changed["changes"]] == ["source"]
    assert first["image"]["id"] not in host.docker("images", "--all", "--quiet", "--no-trunc")
    # Somebody keeps it under another name to go back to: then it stays.
    host.docker("tag", "models/echo:1", "models/stable:1")
    (source / "weights.bin").write_bytes(b"3" * 1000)
    assert host.module("model_image", **wish(source, requirements="requirements.txt"))["changed"]
    assert image(host, "models/stable:1")["Id"] == changed["image"]["id"]


def test_a_server_of_ones_own_runs_as_nobody_in_the_model_s_folder(host: ContainerHost, source: Path) -> None:
    assert host.module("model_image", **wish(source, environment={"MODE": "fast"}))["changed"]
    port = free_port()
    host.container("one", state="healthy", image="models/echo:1", ports=[f"{port}:8080"], health_path="/", health_port=8080)
    assert httpx.get(f"http://127.0.0.1:{port}/").json() == {"uid": 65532, "here": ["server.py"]}
    assert "MODE=fast" in image(host, "models/echo:1")["Config"]["Env"]


UNBUILDABLE: list[tuple[dict[str, Any], str]] = [
    ({"size_budget": "30MiB"}, r"would be .* MiB, above its size_budget of 30MiB: base .* MiB"),
    ({"command": ["python3", "-c", "import sys; sys.exit('no weights')"]}, "ended, the last time with code 1. It wrote last: no weights"),
    ({"environment": {"STATUS": "503"}, "wait_seconds": 2}, "did not become healthy within 2 s: /v2/health/ready answered 503"),
    ({"environment": {"DB_PASSWORD": "x"}}, "DB_PASSWORD reads like a secret"),
    ({"source": "/nowhere"}, "there is no /nowhere on this host"),
    ({"source": "relative"}, "is not an absolute path"),
    ({"framework": "onnx", "command": []}, "has no model.onnx, which onnx serves"),
    ({"base": "no-registry.invalid/base:1"}, "could not be pulled"),
    ({"requirements": "none.txt"}, "none.txt cannot be read"),
    ({"size_budget": "much"}, "much"),
]


def test_what_cannot_be_built_leaves_everything_as_it_was(host: ContainerHost, source: Path) -> None:
    good = host.module("model_image", **wish(source))
    assert good["changed"], good
    (source / "weights.bin").write_bytes(b"new")  # so that every wish below is a change
    before = all_there_is(host)
    for change, told in UNBUILDABLE:
        failed = host.module("model_image", **wish(source, **change))
        assert failed["failed"], change
        assert re.search(told, failed["msg"]), failed["msg"]
        assert "Traceback" not in failed["msg"]
        assert all_there_is(host) == before, change


@pytest.mark.parametrize(
    ("requirements", "told"),
    [
        (SIX.replace("4721f391", "00000000").replace("ff70335d", "00000000"), "DO NOT MATCH THE HASHES"),
        ("six==1.17.0\n", "Hashes are required"),
        ("no-such-distribution-of-ours==1 --hash=sha256:" + "0" * 64 + "\n", "no-such-distribution-of-ours"),
    ],
    ids=["other content", "no hash", "unknown"],
)
def test_requirements_that_cannot_be_trusted(host: ContainerHost, source: Path, requirements: str, told: str) -> None:
    (source / "requirements.txt").write_text(requirements)
    failed = host.module("model_image", **wish(source, requirements="requirements.txt"))
    assert failed["failed"]
    assert told in failed["msg"], failed["msg"]
    assert not list((host.folder / "model_images" / "work").iterdir())
    assert "models/echo" not in str(host.images())
    assert host.docker("ps", "--all", "--quiet") == ""


def test_an_example_that_is_not_answered(host: ContainerHost, tmp_path: Path, source: Path) -> None:
    """Ready is not enough: a server that answers its readiness path and no request is not named."""
    model = tmp_path / "onnx"
    model.mkdir()
    (model / "model.onnx").write_bytes((MODELS / "onnx" / "model.onnx").read_bytes())
    (model / "example.json").write_text('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 5], "data": [1, 2, 3, 4, 5]}]}')
    failed = host.module("model_image", name="models/weights:1", framework="onnx", source=str(model), base="python:sandbox")
    assert "example.json was answered 400" in failed["msg"], failed
    assert "models/weights" not in str(host.images())


def test_a_disk_that_is_full(host: ContainerHost, source: Path) -> None:
    (source / "weights.bin").write_bytes(os.urandom(3 << 20))
    host.folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", host.folder], check=True)
    try:
        failed = host.module("model_image", **wish(source))
        assert failed["failed"]
        assert "space" in failed["msg"] or "the disk of" in failed["msg"], failed["msg"]
        assert not list((host.folder / "model_images" / "work").iterdir())
    finally:
        subprocess.run(["umount", host.folder], check=True)
    assert "models/echo" not in str(host.images())
    assert host.module("model_image", **wish(source))["changed"]


def test_a_build_that_was_cut_short_is_cleared_by_the_next(host: ContainerHost, source: Path) -> None:
    """SIGKILL to everything while its trial runs: neither container nor files nor a half-made image are in the way afterwards."""
    (source / "slow.py").write_text("import time; time.sleep(60)")
    words = {**wish(source, command=["python3", "slow.py"]), "engine": "docker", "engine_address": host.engine.address, "state_dir": str(host.folder)}
    running = subprocess.Popen(
        [ROOT / ".venv/bin/ansible", "-i", ROOT / "inventories/sandbox", "here", "-m", "lepton.cloud.model_image", "-a", json.dumps(words)],
        cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    eventually(lambda: "lepton-try-" in host.docker("ps"), 60)
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(host.folder).encode() in line.read_bytes() or b"AnsiballZ_model_image" in line.read_bytes():
                os.kill(int(line.parent.name), signal.SIGKILL)
        except OSError:
            continue
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert "lepton-try-" in host.docker("ps")
    made = host.module("model_image", **wish(source, command=["python3", "server.py"]))
    assert made["changed"], made
    assert not list((host.folder / "model_images" / "work").iterdir())


def test_removing(host: ContainerHost, source: Path) -> None:
    host.module("model_image", **wish(source))
    host.container("one", image="models/echo:1", state="present")
    refused = host.module("model_image", name="models/echo:1", state="absent")
    assert "is what one was made from" in refused["msg"]
    host.container("one", state="absent")
    before = all_there_is(host)
    assert host.module("model_image", name="models/echo:1", state="absent", check=True)["changed"]
    assert all_there_is(host) == before
    assert host.module("model_image", name="models/echo:1", state="absent")["changed"]
    assert "models/echo" not in str(host.images())
    assert not host.module("model_image", name="models/echo:1", state="absent")["changed"]
    assert "was not built by Lepton" in host.module("model_image", name="model:1", state="absent")["msg"]
    assert "was not built by Lepton" in host.module("model_image", **wish(source, name="model:1"))["msg"]


def test_what_a_host_tells_of_its_images(host: ContainerHost, source: Path) -> None:
    host.module("model_image", **wish(source, licence="MIT"))
    told = host.module("container_host_info", images=True, layers=True)
    (own,) = [item for item in told["model_images"] if item["owned"]]
    assert (own["name"], own["model"], own["version"], own["framework"], own["licence"]) == ("models/echo:1", "echo", "1", "command", "MIT")
    assert own["size"] == image(host, "models/echo:1")["Size"]
    assert image(host, "models/echo:1")["RootFS"]["Layers"][0] in told["layers"]  # the lowest layer is its own chain

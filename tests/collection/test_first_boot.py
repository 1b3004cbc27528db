# SPDX-License-Identifier: Apache-2.0
"""Images from elsewhere, and what a new node is told at its first boot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._fetch import Source, check_source, fetch
from ansible_collections.lepton.cloud.plugins.module_utils._first_boot import check_first_boot, user_data, write_seed
from ansible_collections.lepton.cloud.plugins.module_utils._libvirt import is_reachable
from ansible_collections.lepton.cloud.plugins.module_utils._node import NodeError
from tests.collection.test_virtual_node import Host
from tests.conftest import require

from lepton_ai.sandbox.hypervisor import Hypervisor

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7x ops@example.net"
TOLD: dict[str, Any] = {"user": "ops", "ssh_keys": [KEY], "packages": ["jq"], "files": [{"path": "/etc/motd", "content": "{{ 1 }}: 'x'\n", "mode": "0640"}]}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_words: object) -> None:
        return

    def do_GET(self) -> None:
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
            return
        if self.path == "/huge":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 60))
            self.end_headers()
            return
        super().do_GET()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *words: Quiet(*words, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_an_image_comes_whole_or_not_at_all(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "image").write_bytes(b"content")
    target = tmp_path / "images/debian.qcow2"

    def refuse(_path: str) -> None:
        raise NodeError("it is raw, not qcow2")

    for path, checksum, check, why in (
        ("image", digest(b"other"), len, "is not what was asked for"),
        ("image", digest(b"content"), refuse, "it is raw, not qcow2"),
        ("none", digest(b"content"), len, "could not be fetched .*404"),
        ("cut", digest(b"half"), len, "could not be fetched"),
        ("huge", digest(b""), len, "has 1048576TiB, and .* free"),
    ):
        with pytest.raises(NodeError, match=why):
            fetch(Source(f"{address}/{path}", checksum), str(target), check)
        assert list(target.parent.iterdir()) == []
    fetch(Source(f"{address}/image", digest(b"content")), str(target), len)
    assert target.read_bytes() == b"content"
    assert [path.name for path in target.parent.iterdir()] == ["debian.qcow2"]


@pytest.mark.parametrize(
    ("url", "checksum", "why"),
    [
        ("file:///etc/shadow", "sha256:" + "0" * 64, "expected http:// or https://"),
        ("https://x/y", "md5:" + "0" * 32, "expected sha256:HEX"),
        ("https://x/y", "sha512:" + "0" * 64, "expected sha256:HEX"),
    ],
)
def test_what_cannot_be_fetched_is_said(url: str, checksum: str, why: str) -> None:
    with pytest.raises(NodeError, match=why):
        check_source(Source(url, checksum))


def test_what_a_node_is_told_is_data() -> None:
    text = user_data(check_first_boot(TOLD))
    first, _newline, rest = text.partition("\n")
    assert first == "#cloud-config"
    told = json.loads(rest)
    assert told["users"] == [{"name": "ops", "ssh_authorized_keys": [KEY], "lock_passwd": True, "sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash"}]
    assert told["write_files"] == [{"path": "/etc/motd", "content": "{{ 1 }}: 'x'\n", "permissions": "0640"}]
    assert (told["packages"], told["package_update"], told["ssh_pwauth"]) == (["jq"], True, False)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"user": "root; reboot"}, "is not a user's name"),
        ({"ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}, "expected public keys"),
        ({"packages": ["--allow-downgrades"]}, "is not a package's name"),
        ({"files": [{"path": "motd", "content": "", "mode": "0644"}]}, "expected an absolute path"),
        ({"files": [{"path": "/motd", "content": "", "mode": "u+s"}]}, "expected an absolute path"),
    ],
)
def test_what_cloud_init_cannot_have_is_said(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(NodeError, match=why):
        check_first_boot({**TOLD, **wrong})


@pytest.mark.parametrize(("address", "reachable"), [("10.0.0.1", True), ("fd00::1", True), ("127.0.0.1", False), ("fe80::1", False), ("x; reboot", False)])
def test_only_an_address_that_others_reach_counts(address: str, reachable: bool) -> None:
    assert is_reachable(address) == reachable


@pytest.mark.libvirt
def test_the_seed_is_a_disk_as_cloud_init_looks_for_it(tmp_path: Path) -> None:
    require([] if Path("/usr/bin/genisoimage").exists() else ["genisoimage"], "libvirt")

    def run(command: list[str]) -> tuple[int, str, str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    seed = tmp_path / "web-1.seed.iso"
    write_seed(run, str(seed), "web-1", TOLD)
    assert seed.stat().st_mode & 0o777 == 0o600
    assert "Volume id: cidata" in run(["isoinfo", "-d", "-i", str(seed)])[1]
    assert run(["isoinfo", "-R", "-x", "/user-data", "-i", str(seed)])[1] == user_data(TOLD)
    assert json.loads(run(["isoinfo", "-R", "-x", "/meta-data", "-i", str(seed)])[1])["local-hostname"] == "web-1"
    assert [path.name for path in tmp_path.iterdir()] == ["web-1.seed.iso"]


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_node_of_an_image_from_elsewhere_has_a_disk_upon_it_and_a_seed(hypervisor: Hypervisor, served: tuple[Path, str]) -> None:
    host, (folder, address) = Host(hypervisor), served
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "small.qcow2", "8M"], check=True)
    wish: dict[str, Any] = {
        "image": "fetched", "image_url": f"{address}/small.qcow2", "image_checksum": digest((folder / "small.qcow2").read_bytes()), "vcpus": 1,
        "memory": "64MiB", "disk": "16MiB", "first_boot": {"ssh_keys": [KEY]},
    }  # fmt: skip
    images, disks = hypervisor.folder / "images", hypervisor.folder / "disks"
    wrong = host.node("seed-1", **{**wish, "image_checksum": digest(b"")})
    assert "is not what was asked for" in wrong["msg"]
    assert "seed-1" not in host.virsh("list", "--all", "--name")
    small = host.node("seed-1", **{**wish, "disk": "4MiB"})
    assert "a disk of 4MiB is smaller than the image fetched, which needs 8MiB" in small["msg"]
    (images / "fetched.qcow2").unlink()
    planned = host.node("seed-1", check=True, **wish)
    assert planned["steps"] == ["fetch_image", "define", "create_disk", "write_seed", "finish"]
    assert not (images / "fetched.qcow2").exists()
    made = host.node("seed-1", **wish)
    assert made["steps"] == planned["steps"], made
    assert host.node("seed-1", **wish)["changed"] is False
    info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", disks / "seed-1.qcow2"], capture_output=True, text=True, check=True).stdout)
    assert (info["virtual-size"], info["backing-filename"]) == (16 << 20, str(images / "fetched.qcow2"))
    assert str(disks / "seed-1.seed.iso") in host.virsh("domblklist", "seed-1")
    assert (disks / "seed-1.seed.iso").exists()
    alone = host.node("seed-1", state="running", wait_address=True)
    assert "is on network user, where no other machine has an address for it" in alone["msg"]
    host.virsh("destroy", "seed-1")  # there is nobody in it to press the button for
    # Another name for the node is one for its seed, and somebody's CD-ROM is not its seed.
    renamed = host.module("virtual_node_identity", name="seed-1", new_name="seed-2")
    assert renamed["changed"], renamed
    assert str(disks / "seed-2.seed.iso") in host.virsh("domblklist", "seed-2")
    assert not (disks / "seed-1.seed.iso").exists()
    assert host.node("seed-1", **wish)["changed"]
    assert host.node("seed-1", state="absent")["changed"]
    assert (disks / "seed-2.seed.iso").exists()
    (disks / "netinst.iso").write_bytes(b"")
    host.virsh("change-media", "seed-2", "sda", str(disks / "netinst.iso"), "--update", "--config")
    assert host.node("seed-2", state="absent")["changed"]
    assert (disks / "netinst.iso").exists()
    (disks / "netinst.iso").unlink()
    (disks / "seed-2.seed.iso").unlink()
    assert [path.name for path in disks.glob("seed-1*")] == []
    (images / "fetched.qcow2").unlink()

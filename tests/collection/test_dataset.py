# SPDX-License-Identifier: Apache-2.0
"""Data that replicas read: declared well, there before a replica starts, copied once, and never half."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._dataset import Change, DatasetError, mount_of, plan_dataset, read_dataset
from ansible_collections.lepton.cloud.plugins.module_utils._service import ServiceError, read_service, revision
from tests.conftest import ContainerHost

BASE = {"name": "wiki", "target": "/data/wiki"}
DIGEST = "sha256:" + "5" * 64


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ("wiki", "expected mappings"),
        ({**BASE}, "exactly one of path, nfs, url"),
        ({**BASE, "path": "/a", "nfs": "h:/b"}, "exactly one of"),
        ({"target": "/a", "path": "/b"}, "name is missing"),
        ({**BASE, "path": "/a", "mode": "rw"}, "there is no field mode"),
        ({**BASE, "path": "/a/../etc"}, "path: '/a/../etc' is not"),
        ({**BASE, "path": "/a:rw"}, "path:"),
        ({**BASE, "target": "data", "path": "/a"}, "target:"),
        ({**BASE, "name": "a b", "path": "/a"}, "name:"),
        ({**BASE, "nfs": "h:/x,exec"}, "nfs:"),
        ({**BASE, "url": "ftp://x/y", "digest": DIGEST}, "url:"),
        ({**BASE, "url": "https://x/y"}, "url and digest go together"),
        ({**BASE, "url": "https://x/y", "digest": "md5:1"}, "digest:"),
    ],
)
def test_bad_declarations_are_refused_by_field(declared: Any, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        read_dataset(declared)


def test_each_kind_is_mounted_read_only() -> None:
    assert mount_of(read_dataset({**BASE, "path": "/srv/wiki"}), "/d") == "/srv/wiki:/data/wiki:ro"
    assert mount_of(read_dataset({**BASE, "nfs": "files:/export/wiki"}), "/d") == "lepton-data-wiki:/data/wiki:ro"
    copied = read_dataset({**BASE, "url": "https://files/wiki.tar", "digest": DIGEST})
    assert mount_of(copied, "/d") == "/d/wiki-555555555555:/data/wiki:ro"
    assert plan_dataset(copied, there=True, volume=None, data_dir="/d") == []
    assert plan_dataset(copied, there=False, volume=None, data_dir="/d") == [Change("copy", None, "/d/wiki-555555555555")]


def test_an_export_becomes_a_volume_and_another_one_s_volume_is_left_alone() -> None:
    export = read_dataset({**BASE, "nfs": "files:/export/wiki"})
    options = {"type": "nfs", "o": "addr=files,ro,soft,timeo=100", "device": ":/export/wiki"}
    assert plan_dataset(export, there=False, volume=None, data_dir="/d") == [Change("volume", None, "files:/export/wiki")]
    assert plan_dataset(export, there=False, volume=options, data_dir="/d") == []
    with pytest.raises(DatasetError, match="of another export"):
        plan_dataset(export, there=False, volume={**options, "device": ":/other"}, data_dir="/d")


def test_a_service_with_data_is_another_revision_and_is_kept_as_it_was_declared() -> None:
    plain = {"image": "m:1", "port": 1, "listen_port": 2}
    declared = {**plain, "data": [{**BASE, "path": "/srv/wiki"}]}
    service = read_service("chat", declared)
    assert service.to_fields() == declared
    assert revision(service) != revision(read_service("chat", plain))
    with pytest.raises(ServiceError, match="data: wiki: expected exactly one of"):
        read_service("chat", {**plain, "data": [BASE]})
    with pytest.raises(ServiceError, match="two of them have the same name"):
        read_service("chat", {**plain, "data": [declared["data"][0], {**BASE, "path": "/b", "target": "/b"}]})


# On a host


def archive(folder: Path, names: dict[str, str]) -> tuple[str, str]:
    """Write a tar of these texts; return its URL and digest."""
    (folder / "content").mkdir(parents=True)
    with tarfile.open(folder / "wiki.tar.gz", "w:gz") as made:
        for name, text in names.items():
            (folder / "content" / "one").write_text(text)
            made.add(folder / "content" / "one", arcname=name)
    return f"file://{folder}/wiki.tar.gz", "sha256:" + hashlib.sha256((folder / "wiki.tar.gz").read_bytes()).hexdigest()


@pytest.mark.docker
@pytest.mark.slow
def test_a_copy_is_made_once_and_is_whole(host: ContainerHost, tmp_path: Path) -> None:
    url, digest = archive(tmp_path / "source", {"index/a.txt": "alpha", "b.txt": "beta"})
    given = {**BASE, "url": url, "digest": digest}
    before = host.everything()
    planned = host.module("container_dataset", check=True, **given)
    assert planned["changed"], planned
    assert host.everything() == before
    made = host.module("container_dataset", **given)
    assert made["changes"] == planned["changes"]
    copied = Path(made["mount"].split(":")[0])
    assert {str(path.relative_to(copied)): path.read_text() for path in copied.rglob("*") if path.is_file()} == {"index/a.txt": "alpha", "b.txt": "beta"}
    (tmp_path / "source" / "wiki.tar.gz").unlink()  # it is not asked for again
    assert not host.module("container_dataset", **given)["changed"]
    script = "import pathlib; print(pathlib.Path('/data/wiki/index/a.txt').read_text()); pathlib.Path('/data/wiki/new').write_text('x')"
    seen = host.docker("run", "--rm", "--user=65532", f"--volume={made['mount']}", "python:sandbox", "/usr/bin/python3", "-c", script)
    assert seen.startswith("alpha")
    assert "Read-only file system" in seen


@pytest.mark.docker
@pytest.mark.slow
def test_what_cannot_be_had_leaves_nothing(host: ContainerHost, tmp_path: Path) -> None:
    url, digest = archive(tmp_path / "source", {"a": "alpha"})
    outside, outside_digest = archive(tmp_path / "outside", {"../../a": "alpha"})
    for given, told in (
        ({"url": url, "digest": DIGEST}, f"gave {digest}, and not {DIGEST}"),
        ({"url": "file:///nowhere/x.tar", "digest": DIGEST}, "could not be copied"),
        ({"url": outside, "digest": outside_digest}, "neither a file nor a folder of its own"),
        ({"path": "/nowhere/at/all"}, "there is no folder /nowhere/at/all on this host"),
    ):
        failed = host.module("container_dataset", **BASE, **given)
        assert failed["failed"]
        assert told in failed["msg"], failed
        assert not [path for path in host.folder.rglob("*") if path.is_file() and "locks" not in path.parts]
        assert not list((host.folder / "data").glob("*"))


@pytest.mark.docker
@pytest.mark.slow
def test_an_export_s_volume_as_the_engine_has_it(host: ContainerHost) -> None:
    """No NFS server runs here: what is seen is the volume that the engine would mount when a container needs it."""
    given = {**BASE, "nfs": "files.invalid:/export/wiki"}
    assert host.module("container_dataset", check=True, **given)["changed"]
    assert host.docker("volume", "ls", "--quiet", "--filter", "name=lepton-data") == ""
    assert host.module("container_dataset", **given)["changed"]
    options = json.loads(host.docker("volume", "inspect", "lepton-data-wiki"))[0]["Options"]
    assert options == {"type": "nfs", "o": "addr=files.invalid,ro,soft,timeo=100", "device": ":/export/wiki"}
    assert not host.module("container_dataset", **given)["changed"]
    assert "of another export" in host.module("container_dataset", **BASE, nfs="other.invalid:/x")["msg"]
    host.docker("volume", "rm", "lepton-data-wiki")

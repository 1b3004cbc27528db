# SPDX-License-Identifier: Apache-2.0
"""What an image is made of and whether it must be built, its layers as files, its way between hosts: no engine needed."""

from __future__ import annotations

import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._container import ContainerError
from ansible_collections.lepton.cloud.plugins.module_utils._image import (
    BUILD_LABEL,
    Layer,
    Recipe,
    chain_ids,
    check_budget,
    check_recipe,
    differences,
    image_config,
    image_id,
    read_recipe,
)
from ansible_collections.lepton.cloud.plugins.module_utils._layers import SavedImage, text_layer, tree_digest, tree_layer, write_archive
from ansible_collections.lepton.cloud.plugins.module_utils._placement import PlacementError, route_image
from ansible_collections.lepton.cloud.plugins.plugin_utils._sbom import bill_of_materials

MIB = 1 << 20
RECIPE = Recipe(
    model="tiny", version="1", framework="onnx", base="python:3.12-slim", base_id="sha256:" + "b" * 64, source="sha256:" + "5" * 64, requirements="sha256:r",
    server="sha256:s", licence="Apache-2.0", command=(), environment=(("MODEL_THREADS", "2"),), port=8080, user="65532:65532",
)  # fmt: skip
BASE: dict[str, Any] = {
    "Architecture": "amd64", "Os": "linux", "Size": 100 * MIB, "RootFS": {"Layers": ["sha256:" + "1" * 64]},
    "Config": {"Env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"], "Labels": {"vendor": "somebody"}, "User": "root"},
}  # fmt: skip


def test_a_recipe_survives_its_label() -> None:
    assert read_recipe(RECIPE.to_json()) == RECIPE
    assert differences(RECIPE, RECIPE) == []
    for label in (None, "", "{}", "[]", "nonsense", '{"model": 1}'):
        assert read_recipe(label) is None


def test_what_differs_is_told_by_field_and_digests_shortly() -> None:
    other = RECIPE._replace(source="sha256:" + "6" * 64, environment=())
    assert [change._asdict() for change in differences(other, RECIPE)] == [
        {"field": "source", "before": "sha256:555555555555", "after": "sha256:666666666666", "effective": "now"},
        {"field": "environment", "before": {"MODEL_THREADS": "2"}, "after": [], "effective": "now"},
    ]
    fields = {change.field for change in differences(RECIPE, None)}
    assert fields >= {"model", "source", "base"}
    assert "command" not in fields  # nothing, in place of nothing


@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("models/tiny", {}, "has no tag"),
        ("models/tiny@sha256:" + "a" * 64, {}, "has no tag"),
        ("Models/Tiny:1", {}, "not an image"),
        ("models/tiny:1", {"model": "a b"}, "model: 'a b'"),
        ("models/tiny:1", {"model": "{{ 1 }}"}, "not a name"),
        ("models/tiny:1", {"framework": "caffe"}, "expected one of onnx"),
        ("models/tiny:1", {"framework": "command"}, "needs one"),
        ("models/tiny:1", {"command": ("sh",)}, "brings its own"),
        ("models/tiny:1", {"user": "0:0"}, "does not run as root"),
        ("models/tiny:1", {"user": "root"}, "does not run as root"),
        ("models/tiny:1", {"environment": (("API_KEY", "x"),)}, "API_KEY reads like a secret"),
        ("models/tiny:1", {"environment": (("A B", "x"),)}, "not the name of a variable"),
        ("models/tiny:1", {"port": 0}, "not a published port"),
        ("models/tiny:1", {"base": "-v:/"}, "not an image"),
    ],
)
def test_bad_recipes_are_refused_by_field(name: str, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ContainerError, match=told):
        check_recipe(name, RECIPE._replace(**changed))


def test_an_image_says_what_it_is_made_of_and_is_the_same_every_time() -> None:
    layers = [Layer("requirements", "sha256:" + "2" * 64, 5, ""), Layer("model", "sha256:" + "3" * 64, 5, "")]
    config = image_config(RECIPE, BASE, layers)
    told = json.loads(config)
    assert told["config"]["User"] == "65532:65532"
    assert told["config"]["Cmd"] == ["python3", "-m", "onnx_server"]
    assert told["config"]["Labels"]["vendor"] == "somebody"
    assert read_recipe(told["config"]["Labels"][BUILD_LABEL]) == RECIPE
    assert set(told["config"]["Env"]) >= {"LANG=C.UTF-8", "MODEL_NAME=tiny", "MODEL_FILE=/opt/lepton/model/model.onnx", "MODEL_THREADS=2", "HTTP_PORT=8080"}
    assert told["rootfs"]["diff_ids"] == ["sha256:" + digit * 64 for digit in "123"]
    assert len(told["history"]) == 3
    time.sleep(0.001)
    assert image_id(image_config(RECIPE, BASE, layers)) == image_id(config)


def test_above_its_budget_it_is_told_what_costs_most() -> None:
    layers = [Layer("requirements", "", 300 * MIB, ""), Layer("model", "", 20 * MIB, "")]
    heavy = [{"name": "torch", "size": 200 * MIB}, {"name": "six", "size": 10}]
    assert check_budget("m:1", 420 * MIB, BASE, layers, heavy) == 420 * MIB
    with pytest.raises(ContainerError) as refused:
        check_budget("m:1", 420 * MIB - 1, BASE, layers, heavy)
    assert "m:1 would be 420 MiB" in str(refused.value)
    assert "requirements 300 MiB, base 100 MiB, model 20 MiB; the heaviest requirements are torch 200 MiB, six 10 B" in str(refused.value)


def a_model(folder: Path) -> Path:
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "b.bin").write_bytes(b"b" * 3000)
    (folder / "a.sh").write_text("#!/bin/sh\n")
    (folder / "a.sh").chmod(0o750)
    (folder / "link").symlink_to("weights/b.bin")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("url = https://user:token@example.net")
    return folder


def test_a_layer_is_the_same_whoever_wrote_the_files_when(tmp_path: Path) -> None:
    one, two = a_model(tmp_path / "one"), a_model(tmp_path / "two")
    for path in two.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (1, 1))
            path.chmod(path.stat().st_mode & 0o700)
    made = tree_layer("model", str(one), "/opt/lepton/model", str(tmp_path / "layer.tar"), strict=True)
    assert made.diff_id == tree_digest(str(two), "/opt/lepton/model") == tree_digest(str(one), "/opt/lepton/model")
    with tarfile.open(made.path) as archive:
        members = archive.getmembers()
        names = [member.name for member in members]
        assert names == ["opt", "opt/lepton", *(f"opt/lepton/model{name}" for name in ("", "/a.sh", "/link", "/weights", "/weights/b.bin"))]
        assert {(member.uid, member.gid, member.mtime, member.uname) for member in members} == {(0, 0, 0, "")}
        assert {member.name.rpartition("/")[2]: member.mode for member in members if member.isfile()} == {"a.sh": 0o755, "b.bin": 0o644}
    (one / "weights" / "b.bin").write_bytes(b"b" * 2999 + b"c")
    assert tree_digest(str(one), "/opt/lepton/model") != made.diff_id


@pytest.mark.parametrize("name", [".env", ".env.production", "id_rsa", "server.key", "tls/ca.PEM", ".netrc", "credentials.json", ".pypirc"])
def test_files_that_hold_secrets_do_not_go_into_an_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(ContainerError, match="keep secrets in"):
        tree_digest(str(tmp_path), "/opt/lepton/model")


def test_links_out_of_the_model_and_sockets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for target in ("/etc/passwd", "../outside"):
        (tmp_path / "model" / "link").symlink_to(target)
        with pytest.raises(ContainerError, match="leads out"):
            tree_digest(str(tmp_path / "model"), "/m")
        (tmp_path / "model" / "link").unlink()
    os.mkfifo(tmp_path / "model" / "pipe")
    with pytest.raises(ContainerError, match="neither a file nor a folder"):
        tree_digest(str(tmp_path / "model"), "/m")


def test_a_single_file_is_what_its_name_stands_for(tmp_path: Path) -> None:
    (tmp_path / "v3.onnx").write_bytes(b"three")
    (tmp_path / "current.onnx").symlink_to(tmp_path / "v3.onnx")
    first = tree_digest(str(tmp_path / "current.onnx"), "/opt/lepton/model/model.onnx")
    assert first == tree_digest(str(tmp_path / "v3.onnx"), "/opt/lepton/model/model.onnx")
    (tmp_path / "v3.onnx").write_bytes(b"other")
    assert tree_digest(str(tmp_path / "current.onnx"), "/opt/lepton/model/model.onnx") != first
    (tmp_path / "id_rsa").write_text("x")
    (tmp_path / "model.bin").symlink_to(tmp_path / "id_rsa")
    for name in ("id_rsa", "model.bin"):
        with pytest.raises(ContainerError, match="keep secrets in"):
            tree_digest(str(tmp_path / name), "/m")


def test_an_archive_leaves_out_what_is_known_where_it_goes(tmp_path: Path) -> None:
    layers = [text_layer(name, "/opt/lepton", {name: name}, str(tmp_path / f"{name}.tar")) for name in ("first", "second")]
    config = image_config(RECIPE, {**BASE, "RootFS": {"Layers": []}}, layers)
    with Path(layers[0].path).open("rb") as first, Path(layers[1].path).open("rb") as second:
        write_archive(str(tmp_path / "all.tar"), "m:1", config, [(layers[0].diff_id, first), (layers[1].diff_id, second)])
    with SavedImage(str(tmp_path / "all.tar")) as saved:
        assert saved.config == config
        chains = chain_ids(saved.diff_ids)
        assert saved.layer(layers[1].diff_id).read() == Path(layers[1].path).read_bytes()
        content = saved.layers_without({chains[0]}, chains)
        write_archive(str(tmp_path / "short.tar"), "m:1", saved.config, content)
    with tarfile.open(tmp_path / "short.tar") as archive:
        names = archive.getnames()
    assert layers[0].diff_id.rpartition(":")[2] + ".tar" not in names
    assert layers[1].diff_id.rpartition(":")[2] + ".tar" in names


def test_chains_are_those_of_the_specification() -> None:
    assert chain_ids([]) == []
    assert chain_ids(["sha256:" + "0" * 64]) == ["sha256:" + "0" * 64]
    # printf 'sha256:000… sha256:111…' | sha256sum
    assert chain_ids(["sha256:" + "0" * 64, "sha256:" + "1" * 64])[1] == "sha256:f94b891e05f6e37c90d87edfd5bb98a02d618a437c35f3a94b3b00e48e894631"


def host(image: str | None, *layers: str) -> dict[str, Any]:
    return {"container_images": {"m:1": image} if image else {}, "layers": list(layers)}


def test_an_image_goes_to_the_hosts_that_lack_it() -> None:
    answers = {"a": host("sha256:x", "1"), "b": host(None, "1", "2"), "c": host("sha256:y", "2", "3"), "d": host("sha256:x")}
    route = route_image("m:1", from_host="a", to_hosts=None, answers=answers)
    assert (route.from_host, route.to_hosts, route.id, route.without) == ("a", ("b", "c"), "sha256:x", ("2",))
    assert route_image("m:1", from_host="d", to_hosts=["a"], answers=answers).to_hosts == ()
    for given, told in [
        ({"from_host": None, "to_hosts": None}, "another image on each of a, c, d"),
        ({"from_host": "b", "to_hosts": None}, "b does not have the image m:1"),
        ({"from_host": "z", "to_hosts": None}, "there is no host z"),
        ({"from_host": "a", "to_hosts": ["{{ z }}"]}, "there is no host"),
    ]:
        with pytest.raises(PlacementError, match=told):
            route_image("m:1", answers=answers, **given)  # type: ignore[arg-type]
    with pytest.raises(PlacementError, match="e did not answer: no route"):
        route_image("m:1", from_host="a", to_hosts=None, answers={**answers, "e": {"msg": "no route"}})


STATUS = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"


def test_the_bill_of_materials_lists_what_is_in_the_image_and_is_the_same_every_time() -> None:
    components = {
        "distributions": [
            {"name": "Six_Seven", "version": "1.17.0", "licence": "MIT", "size": 3}, {"name": "odd", "version": "1", "licence": "Some words", "size": 3},
        ],
        "packages": STATUS, "recipe": RECIPE._asdict(),
    }  # fmt: skip
    text = bill_of_materials("models/tiny:1", components)
    assert bill_of_materials("models/tiny:1", components) == text
    told = json.loads(text)
    assert told["bomFormat"] == "CycloneDX"
    assert {item.get("purl") for item in told["components"]} == {None, "pkg:pypi/six-seven@1.17.0", "pkg:pypi/odd@1", "pkg:deb/debian/libc6@2.36-9?arch=amd64"}
    model = next(item for item in told["components"] if item["type"] == "machine-learning-model")
    assert model["hashes"] == [{"alg": "SHA-256", "content": "5" * 64}]
    assert bill_of_materials("models/tiny:1", {**components, "packages": ""}) != text

# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image's bill of materials in CycloneDX: the same inputs give the same text. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime, timezone
from email import message_from_string
from typing import Any, Iterator, Mapping

from ansible.errors import AnsibleActionFail

try:
    from cyclonedx.factory.license import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error


def bill_of_materials(name: str, components: Mapping[str, Any]) -> str:
    """Return the bill of an image from what its module says it is made of: {distributions, packages, recipe}."""
    if IMPORT_ERROR is not None:
        raise AnsibleActionFail("a bill of materials needs cyclonedx-python-lib where ansible-playbook runs: %s" % IMPORT_ERROR)
    recipe = components["recipe"]
    parts = [_model(recipe), *_distributions(components["distributions"]), *_packages(components["packages"])]
    parts.append(Component(type=ComponentType.CONTAINER, name=recipe["base"], version=recipe["base_id"], bom_ref="base"))
    image = Component(type=ComponentType.CONTAINER, name=name.rpartition(":")[0], version=name.rpartition(":")[2], bom_ref="image")
    # The time and the serial number of a bill are of its own making otherwise, and would make every build another image.
    metadata = BomMetaData(component=image, timestamp=datetime.fromtimestamp(0, timezone.utc))
    content = hashlib.sha256(repr((name, sorted(recipe.items()), [str(part.purl) for part in parts])).encode()).hexdigest()
    bom = Bom(components=parts, metadata=metadata, serial_number=uuid.uuid5(uuid.NAMESPACE_URL, content))
    bom.register_dependency(image, parts)
    text: str = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    return text


def _licences(text: str) -> list[Any]:
    return [LicenseFactory().make_from_string(text)] if text else []


def _model(recipe: Mapping[str, Any]) -> Any:
    digest = HashType(alg=HashAlgorithm.SHA_256, content=recipe["source"].rpartition(":")[2])
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=recipe["model"],
        version=recipe["version"],
        hashes=[digest],
        licenses=_licences(recipe["licence"]),
        bom_ref="model",
    )


def _distributions(found: list[Mapping[str, Any]]) -> Iterator[Any]:
    for item in found:
        purl = PackageURL("pypi", None, item["name"].lower().replace("_", "-"), item["version"])
        yield Component(name=item["name"], version=item["version"], purl=purl, licenses=_licences(item["licence"]), bom_ref=str(purl))


def _packages(status: str) -> Iterator[Any]:
    """Yield what dpkg's list says is installed. See https://www.debian.org/doc/debian-policy/ch-controlfields.html"""
    fields = [message_from_string(paragraph) for paragraph in status.split("\n\n") if paragraph.strip()]
    vendor = "ubuntu" if any("ubuntu" in str(item["Version"]) for item in fields) else "debian"
    for item in fields:
        if item["Package"] and str(item["Status"]).endswith(" installed"):
            purl = PackageURL("deb", vendor, item["Package"], item["Version"], {"arch": item["Architecture"]})
            yield Component(name=item["Package"], version=item["Version"], purl=purl, bom_ref=str(purl))

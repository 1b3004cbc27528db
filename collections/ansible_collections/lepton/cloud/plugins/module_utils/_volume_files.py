# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Images, disks and console logs of nodes as libvirt's storage volumes, for a hypervisor on another machine. PRIVATE.

A folder is a storage pool of type `dir`. One that no pool covers gets a transient pool, which is gone when libvirtd
starts again; libvirt has no other way to look into a folder of the host (https://libvirt.org/storage.html).
"""

from __future__ import annotations

import hashlib
import posixpath
import xml.etree.ElementTree as ET
from typing import Any, NamedTuple

from ._node import NodeError

try:
    import libvirt
except ImportError:
    # ansible-test imports every file without it; modules answer with missing_required_lib.
    libvirt = None


class VolumeFiles:
    """Files by their paths on the host, through one libvirt connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def is_file(self, path: str) -> bool:
        volume = self._volume(path)
        return volume is not None and volume.info()[0] == libvirt.VIR_STORAGE_VOL_FILE

    def exists(self, path: str) -> bool:
        return self._volume(path) is not None

    def read(self, path: str, limit: int) -> bytes:
        """Return the last `limit` bytes of a file, b"" when there is none."""
        volume = self._volume(path)
        if volume is None:
            return b""
        chunks: list[bytes] = []
        stream = self._connection.newStream()
        volume.download(stream, 0, 0)
        stream.recvAll(lambda _stream, data, kept: kept.append(data), chunks)
        stream.finish()
        return b"".join(chunks)[-limit:]

    def names(self, folder: str) -> list[str]:
        """Return the names of what lies in a folder, [] when there is none."""
        pool = self._pool(folder)
        return [] if pool is None else list(pool.listVolumes())

    def free(self, folder: str) -> int | None:
        """Return the bytes that are free in a folder, None when it does not exist yet."""
        pool = self._pool(folder)
        return None if pool is None else int(pool.info()[3])

    def qcow2_size(self, path: str) -> int:
        """Return the virtual size of a qcow2 image in bytes."""
        volume = self._volume(path)
        if volume is None:
            raise NodeError("the image %s is gone" % path)
        found = ET.fromstring(volume.XMLDesc()).find("target/format")
        kind = "unknown" if found is None else found.get("type")
        if kind != "qcow2":
            raise NodeError("the image %s is %s, not qcow2" % (path, kind))
        return int(volume.info()[1])

    def make_folder(self, folder: str) -> None:
        if self._pool(folder) is None:
            self._connection.storagePoolCreateXML(_pool_xml(folder), libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)

    def make_disk(self, path: str, image: str | None, size: int | None, *, raw: bool = False) -> None:
        """Make a disk beside an empty volume that says it is ours; a file that is there already stays."""
        if raw:
            raise NodeError("a disk of Xen's is made by its host: reach it by ssh, and not by a libvirt URI of another machine")
        folder, name = posixpath.split(path)
        self.make_folder(folder)
        pool = self._pool(folder)
        if self.is_own(path):
            self.delete(path, folder)  # by an earlier try that was cut short: it may not be whole
        elif self.exists(path):
            raise NodeError("%s is there already, and is left as it is: move it away" % path)
        elif not self.exists(path + ".partial"):
            pool.createXML(_volume_xml(name + ".partial", "raw", 0, None), 0)
        pool.createXML(_volume_xml(name, "qcow2", size or self.qcow2_size(image or path), image), 0)

    def is_own(self, path: str) -> bool:
        """Return whether a disk was made by a creation that is not finished yet."""
        return self.exists(path + ".partial") and self.exists(path)

    def delete(self, path: str, home: str) -> None:
        """Delete a file as far as there is one and it lies in `home`."""
        volume = self._volume(path) if posixpath.dirname(posixpath.normpath(path)) == posixpath.normpath(home) else None
        if volume is not None:
            volume.delete()

    def _volume(self, path: str) -> Any:
        folder, name = posixpath.split(posixpath.normpath(path))
        pool = self._pool(folder)
        if pool is None:
            return None
        try:
            return pool.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise
        return None

    def _pool(self, folder: str) -> Any:
        """Return the pool of a folder as its files now are, None when there is no such folder."""
        folder = posixpath.normpath(folder)
        pool = self._known_pool(folder)
        try:
            if pool is None:
                pool = self._connection.storagePoolCreateXML(_pool_xml(folder), 0)
            elif not pool.isActive():
                pool.create()
            pool.refresh()
        except libvirt.libvirtError as error:
            pool = self._known_pool(folder)  # somebody made it in the same moment
            if pool is None and error.get_error_code() in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR):
                return None
            if pool is None or not pool.isActive():
                raise
        return pool

    def _known_pool(self, folder: str) -> Any:
        known = (pool.name for pool in pool_paths(self._connection).values() if pool.path == folder)
        name = next(known, None)
        return None if name is None else self._connection.storagePoolLookupByName(name)


class Pool(NamedTuple):
    """A folder that libvirt knows."""

    name: str
    path: str
    active: bool
    autostart: bool
    persistent: bool


def pool_paths(connection: Any) -> dict[str, Pool]:
    """Return the pools that are folders, by name."""
    found = {}
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_DIR):
        path = posixpath.normpath(ET.fromstring(pool.XMLDesc()).findtext("target/path") or "/")
        found[pool.name()] = Pool(pool.name(), path, bool(pool.isActive()), bool(pool.autostart()), bool(pool.isPersistent()))
    return found


def have_pool(connection: Any, name: str, folder: str) -> None:
    """Have a folder known under a name, now and after a restart. A transient pool of it, as this collection makes them, gives way."""
    for pool in pool_paths(connection).values():
        if pool.path == folder and not pool.persistent:
            connection.storagePoolLookupByName(pool.name).destroy()
    try:
        pool = connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
        pool = connection.storagePoolDefineXML(_pool_xml(folder, name))
    if not pool.isActive():
        pool.create(libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
    pool.setAutostart(1)


def _pool_xml(folder: str, name: str | None = None) -> str:
    pool = ET.Element("pool", type="dir")
    ET.SubElement(pool, "name").text = name or "lepton-" + hashlib.sha256(folder.encode()).hexdigest()[:12]
    ET.SubElement(ET.SubElement(pool, "target"), "path").text = folder
    return ET.tostring(pool, encoding="unicode")


def _volume_xml(name: str, kind: str, size: int, image: str | None) -> str:
    volume = ET.Element("volume", type="file")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", unit="bytes").text = str(size)
    ET.SubElement(ET.SubElement(volume, "target"), "format", type=kind)
    if image is not None:
        backing = ET.SubElement(volume, "backingStore")
        ET.SubElement(backing, "path").text = image
        ET.SubElement(backing, "format", type="qcow2")
    return ET.tostring(volume, encoding="unicode")

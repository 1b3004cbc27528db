# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Observing and changing domains through libvirt: the effects behind the plans of `_node`. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Callable, Iterator, Mapping, Sequence

from ._domain_xml import marked, parsed, read_boot, read_cell, read_hostdevs, read_paths, read_size, read_unfinished, render_domain, resized
from ._first_boot import write_seed
from ._local_files import LocalFiles, Run
from ._node import Boot, Capacity, Node, NodeError, Size, Step, given, used_by
from ._numa import Cell, Seat, capacity_of, cells_result, choose_seat, read_cells, tighter
from ._pci import choose_devices, devices_taken, read_cpuset, read_devices
from ._units import format_size
from ._volume_files import VolumeFiles

try:
    import libvirt
except ImportError:
    # ansible-test imports every file without it; modules answer with missing_required_lib.
    libvirt = None

KIB = 1024
MIB = 1024 * KIB
STATE = 0 if libvirt is None else libvirt.VIR_DOMAIN_STATS_STATE
# Of these libvirt asks each guest's QEMU, 3 ms for each (tests/benchmarks/growth.py): for one node, and not for a list of all.
STATS = 0 if libvirt is None else STATE | libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_VCPU
KEEPALIVE = (5, 4)  # seconds between two, and how many may stay without an answer
PROBE_SECONDS = 10.0  # for a firmware to boot in software emulation, which takes 0.1 to 0.2 s
PROBE_FACTOR = 3  # a firmware that takes longer than so many times that is not virtualised by hardware
PROBE_SLACK = 0.3  # seconds that starting a process may vary
PROBE_END = b"No bootable device"
LOOK_SECONDS = 0.2  # after which is looked at what a hypervisor sends no event for
REPRESS_SECONDS = 5  # a guest that is still booting does not hear the power button
LONGEST_CMDLINE = 4096  # bytes of a kernel command line


_events: list[threading.Thread] = []


def _run_events() -> None:
    """Have libvirt's events handled for as long as this process lives, also while it waits for an answer: only so is it noticed that none can come."""
    if _events:
        return
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    _events.append(threading.Thread(target=run, name="libvirt", daemon=True))
    _events[0].start()


class Host:
    """A connection to one hypervisor, with the folders its nodes live in."""

    def __init__(self, uri: str, *, image_dir: str, disk_dir: str, cpu_overcommit: float, memory_reserve: int, run: Run) -> None:
        # libvirt prints every error to stderr by default, beside raising it.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        _run_events()
        self.uri = uri
        self.image_dir = image_dir
        self.disk_dir = disk_dir
        self.cpu_overcommit = cpu_overcommit
        self.memory_reserve = memory_reserve
        self._run = run
        try:
            self.connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise NodeError("libvirt does not answer at %s: %s. Is libvirtd running there?" % (uri, error)) from error
        if not self._local:
            # Else a call that was under way when the network went would never end.
            self.connection.setKeepAlive(*KEEPALIVE)
        self.files = LocalFiles(run) if self._local else VolumeFiles(self.connection)
        self.xen = self.connection.getType() == "Xen"
        self._told = ""  # of the host's hardware, which is asked for once

    def close(self) -> None:
        self.connection.close()

    # -- observe -------------------------------------------------------------------------------------------------

    def node(self, name: str) -> Node | None:
        """Return one domain as it is, or None, also where it vanishes while it is looked at."""
        try:
            return self._look(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _look(self, name: str) -> Node | None:
        domain = self._domain(name)
        if domain is None:
            return None
        found = self._stats([domain])
        if not found:  # it has just vanished
            return None
        stats = dict(found[0][1])
        if "balloon.current" in stats and stats["state.state"] != libvirt.VIR_DOMAIN_SHUTOFF:
            # The figure among the others is of the last event, up to a second old.
            stats["balloon.current"] = self._balloon(domain, stats["balloon.current"])
        kept, saved = bool(domain.isPersistent()), bool(domain.hasManagedSaveImage())
        return self._observe(domain, stats, transient=not kept, saved=kept and saved)

    def domains(self) -> list[Node]:
        """Return every domain of the host, ours or not, by name, without what its guest says of itself.

        Three calls of libvirt whatever the host carries, and for each domain one, or two while it runs: what is in its metadata, and what it has at
        its next start, is told in no other way.
        """
        transient = self._listed(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
        saved = self._listed(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
        found = [self._observe(domain, stats, transient=domain.UUID() in transient, saved=domain.UUID() in saved) for domain, stats in self._stats()]
        return sorted((node for node in found if node is not None), key=lambda node: node.name)

    def nodes(self) -> list[Node]:
        """Return every domain of the host that bears our mark, by name."""
        return owned(self.domains())

    def capacity(self, domains: Sequence[Node] | None = None, *, huge: bool = False) -> Capacity:
        """Return what this host may give and has given, running or stopped, ours or not; of `domains` where they have been looked at just now.

        Memory is that of its huge pages, or all other.
        """
        domains = self.domains() if domains is None else domains
        cells = read_cells(self._capabilities())
        reserved, pages = sum(cell.reserved for cell in cells), sum(cell.huge for cell in cells)
        memory = pages if huge else max(0, self._memory() - self.memory_reserve - reserved)
        vcpus_used = used_by(domains)[0]
        memory_used = used_by([node for node in domains if node.huge == huge])[1]
        return Capacity(int(self.connection.getInfo()[2] * self.cpu_overcommit), memory, vcpus_used, memory_used)

    def room_of(self, node: Node | None, *, huge: bool = False, numa: bool = False) -> Capacity:
        """Return this host's capacity for a node, or for a new one whose memory is `huge` pages, or that is on one NUMA node as a whole.

        What is bound to a NUMA node grows only within that, and a new one gets no more headroom than the largest of them has.
        """
        domains, cells = self.domains(), self.cells()
        if node is not None:
            huge, cells = node.huge, [cell for cell in cells if cell.number == node.cell]
        whole = self.capacity(domains, huge=huge)
        if not cells or (node is None and not numa):
            return whole
        if node is not None:
            return tighter(whole, capacity_of(cells[0], domains, self.cpu_overcommit, huge=huge))
        parts = [capacity_of(cell, (), self.cpu_overcommit, huge=huge) for cell in cells]
        return replace(whole, vcpus=min(whole.vcpus, max(part.vcpus for part in parts)), memory=min(whole.memory, max(part.memory for part in parts)))

    def _memory(self) -> int:
        # Not getInfo(), which adds up NUMA cells: seen to leave out memory that was added while the machine ran.
        if self.xen:  # whose driver has no such figures
            return int(self.connection.getInfo()[1]) * MIB
        return int(self.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)["total"]) * KIB

    def facts(self, domains: Sequence[Node]) -> dict[str, Any]:
        """Return the host's own hardware: name, cpus, memory in bytes, and its NUMA nodes where it has several, with what `domains` leave of them."""
        info = self.connection.getInfo()
        numa = cells_result(self.cells(), domains, self.cpu_overcommit)
        return {"hostname": self.connection.getHostname(), "cpus": info[2], "memory": self._memory(), "numa": numa}

    def cells(self) -> list[Cell]:
        """Return the host's NUMA nodes, [] where it has but one."""
        cells = read_cells(self._capabilities())
        return cells if len(cells) > 1 else []

    def _capabilities(self) -> str:
        if not self._told:
            self._told = str(self.connection.getCapabilities())
        return self._told

    def images(self) -> list[str]:
        """Return the names of the images in the host's folder for them."""
        names = self.files.names(self.image_dir)
        return sorted({name[: -len(".qcow2")] if name.endswith(".qcow2") else name for name in names if not name.startswith(".")})

    def image_size(self, image: str) -> int | None:
        """Return how large a disk from an image is at least, in bytes; None where it is no disk image, or none of this host's."""
        try:
            disk_image = self._image(image)[0]
        except NodeError:
            return None
        return None if disk_image is None else self.files.qcow2_size(disk_image)

    def disk_free(self) -> int | None:
        """Return how many bytes are free for disks, None where that cannot be told."""
        return self.files.free(self.disk_dir)

    def addresses(self, name: str) -> list[str]:
        """Return the addresses that a running node has: by its agent, else by the leases of libvirt's networks, else by the host's ARP table."""
        domain = self.domain(name)
        agent = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
        for source in (agent, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP):
            try:
                interfaces = domain.interfaceAddresses(source)
            except libvirt.libvirtError:  # no agent, a driver that cannot tell, or a node that has just ended
                continue
            found = [address["addr"] for interface in interfaces.values() for address in interface["addrs"] or () if is_reachable(address["addr"])]
            if found:
                return found
        return []

    def cpu_seconds(self, name: str) -> float:
        """Return how long a running node has kept a CPU busy, all of its vCPUs taken together."""
        return float(self.domain(name).info()[4]) / 1e9

    def console(self, name: str, limit: int) -> str:
        """Return the last `limit` bytes that the node printed on its serial console."""
        domain = self._domain(name)
        path = None if domain is None else self.console_path(name) if self.xen else read_paths(domain.XMLDesc())["console"]
        if path is None:
            raise NodeError("%s keeps no console log" % name)
        return self.files.read(path, limit).decode("utf-8", "replace")

    def _domain(self, name: str) -> Any:
        try:
            return self.connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _stats(self, domains: Sequence[Any] | None = None) -> list[tuple[Any, Mapping[str, Any]]]:
        """Return what libvirt measures of these domains, and the state of all where none are named, or of Xen's, whose driver measures nothing."""
        try:
            found = self.connection.getAllDomainStats(STATE) if domains is None else self.connection.domainListGetStats(domains, STATS)
            return list(found)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        return [(domain, {"state.state": domain.state()[0]}) for domain in (self.connection.listAllDomains() if domains is None else domains)]

    def _listed(self, flag: int) -> set[bytes]:
        return {domain.UUID() for domain in self.connection.listAllDomains(flag)}

    def _balloon(self, domain: Any, otherwise: int) -> int:
        """Return the guest's memory in KiB as its balloon has it now."""
        try:
            return int(domain.memoryStats().get("actual", otherwise))
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):  # it ended while we looked
                return otherwise
            raise

    def _observe(self, domain: Any, stats: Mapping[str, Any], *, transient: bool, saved: bool) -> Node | None:
        """Return a domain as it is, None when it vanished meanwhile."""
        try:
            config_xml = parsed(domain.XMLDesc(0 if transient else libvirt.VIR_DOMAIN_XML_INACTIVE))
            live = _live_size(stats) or read_size(domain.XMLDesc()) if stats["state.state"] != libvirt.VIR_DOMAIN_SHUTOFF else None
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        used = None
        if live is not None and "balloon.usable" in stats and "balloon.available" in stats:
            # What the kernel keeps for itself never shows as available, yet it is used. The figures are up to two
            # seconds old: where they are from before the balloon moved, only their difference means anything.
            used = (max(stats["balloon.available"], stats["balloon.current"]) - stats["balloon.usable"]) * KIB
        paths = read_paths(config_xml)
        boot = read_boot(config_xml)
        return Node(
            name=domain.name(),
            config=read_size(config_xml),
            live=live,
            boot=boot,
            memory_used=used,
            virtualization=paths["type"],
            unfinished=read_unfinished(config_xml),
            devices=read_hostdevs(config_xml),
            cell=read_cell(config_xml),
            huge=config_xml.find("memoryBacking/hugepages") is not None,
            seeded=paths["seed"] is not None and paths["seed"] == self.seed_path(domain.name()),
            disk_path=paths["disk"],
            paused=stats["state.state"] == libvirt.VIR_DOMAIN_PAUSED,
            saved=saved,
            disk_missing=boot is not None and paths["disk"] is not None and self._local and not os.path.exists(paths["disk"]),
        )

    @property
    def _local(self) -> bool:
        """Whether the hypervisor's files are this machine's files."""
        driver, _separator, rest = self.uri.partition("://")
        return rest.startswith("/") and driver.partition("+")[2] in ("", "unix")

    @property
    def lock_dir(self) -> str:
        """Return where locks of this host stand; of one on another machine, only what runs on this machine sees them."""
        if self._local:
            return self.disk_dir
        return os.path.expanduser("~/.cache/lepton/locks/" + hashlib.sha256(self.uri.encode()).hexdigest()[:16])

    # -- change --------------------------------------------------------------------------------------------------

    def apply(
        self,
        name: str,
        steps: tuple[Step, ...],
        *,
        virtualization: str,
        wait_seconds: int,
        reserved: Callable[[], None],
        seed: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Do the steps in order and return warnings. A creation that fails is taken back; each step may be repeated.

        `reserved` is called as soon as the host's capacity shows what was asked for; waiting for a guest comes after. `seed` is what a new node is
        told at its first boot.
        """
        warnings: list[str] = []
        made = None
        sizing = [step for step in steps if step.action in ("define", "resize_live", "resize_config")]
        try:
            for step in steps:
                if step.action == "fetch_image":
                    continue  # which took its time before anybody had to wait for this host
                if step.action == "define":
                    made = self._define(name, step, virtualization, warnings, seeded=seed is not None)
                elif step.action == "write_seed":
                    write_seed(self._run, self.seed_path(name), name, given(seed))
                elif step.action == "create_disk":
                    self._create_disk(name, step)
                elif step.action == "start":
                    self.domain(name).create()
                elif step.action == "resume":
                    self.domain(name).resume()
                elif step.action == "finish":
                    self.finish(name)
                elif step.action == "mark_releasing":
                    self._mark(name, "releasing")
                elif step.action == "destroy":
                    self.domain(name).destroy()
                elif step.action == "shutdown":
                    self._shutdown(name, wait_seconds)
                elif step.action == "undefine":
                    self.domain(name).undefineFlags(self._undefine_flags())
                elif step.action == "delete_disk":
                    self._delete_files(self.domain(name))
                elif step.action == "resize_live":
                    self._resize_live(name, step, wait_seconds)
                elif step.action == "resize_config":
                    self._resize_config(name, step)
                else:
                    raise AssertionError(step.action)
                if not sizing or step is sizing[-1]:
                    reserved()
        except (libvirt.libvirtError, OSError, NodeError) as error:
            if made is not None:
                self._take_back(made)
                raise NodeError("%s was not created, and nothing is left of it: %s" % (name, error)) from error
            raise NodeError("%s: %s" % (name, error)) from error
        return warnings

    def _undefine_flags(self) -> int:
        flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        if not self.xen:  # whose driver has none of these, and refuses the words
            flags |= libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        return int(flags)

    def domain(self, name: str) -> Any:
        """Return libvirt's own object of a node that must be there."""
        domain = self._domain(name)
        if domain is None:
            raise NodeError("%s is gone from this host" % name)
        return domain

    def disk_format(self, name: str) -> str:
        """Return what is in the file of a node's disk, by its description."""
        return self._config_paths(self.domain(name))["format"] or "raw"

    def disk_path(self, name: str) -> str:
        return os.path.join(self.disk_dir, name + (".raw" if self.xen else ".qcow2"))  # Xen reads raw disks without a QEMU of its own

    def console_path(self, name: str) -> str:
        """Return where a node's console is logged; on Xen by xenconsoled, where it was started with --log=guest."""
        if self.xen:
            return "/var/log/xen/console/guest-%s.log" % name
        return os.path.join(self.disk_dir, name + ".console.log")

    def seed_path(self, name: str) -> str:
        """Return the disk on which a node finds what it is told at its first boot."""
        return os.path.join(self.disk_dir, name + ".seed.iso")

    def has_image(self, image: str) -> bool:
        try:
            self._image(image)
        except NodeError:
            return False
        return True

    def _image(self, image: str) -> tuple[str | None, dict[str, str] | None]:
        """Return (disk image, direct boot) for an image's name or absolute path; one of them may be None."""
        if "/" in image and not os.path.isabs(image):
            raise NodeError("%s is not an image: expected a name in %s or an absolute path" % (ascii(image[:80]), self.image_dir))
        path = image if os.path.isabs(image) else os.path.join(self.image_dir, image)
        boot = {"kernel": os.path.join(path, "vmlinuz"), "initrd": os.path.join(path, "initrd.img")}
        if all(self.files.is_file(file) for file in boot.values()):
            cmdline = self.files.read(os.path.join(path, "cmdline"), LONGEST_CMDLINE).decode("utf-8", "replace").strip()
            disk = os.path.join(path, "disk.qcow2")
            return disk if self.files.is_file(disk) else None, dict(boot, cmdline=cmdline or "console=ttyS0")
        for candidate in (path, path + ".qcow2"):
            if self.files.is_file(candidate):
                return candidate, None
        raise NodeError("there is no image %s: expected a qcow2 file or a folder with vmlinuz and initrd.img in %s" % (ascii(image[:80]), self.image_dir))

    def direct_boot(self, image: str, *, needed: bool) -> dict[str, str] | None:
        """Return what a node boots from that does not boot from its disk; a disk that is there already needs no image."""
        try:
            return self._image(image)[1]
        except NodeError:
            if needed:
                raise
            return None

    def check_image(self, name: str, size: Size, boot: Boot) -> None:
        """Raise NodeError when the node could not be made from its image or its disk would not fit."""
        disk_image, direct_boot = self._image(boot.image)
        if self.xen and direct_boot is None:
            raise NodeError("%s has no kernel, and a paravirtual guest of Xen boots one: expected a folder with vmlinuz and initrd.img" % boot.image)
        if self.xen and boot.network == "user":
            raise NodeError("Xen has no network of mode user: give network as bridge:NAME, network:NAME or none")
        wanted = boot.disk or 0
        if disk_image is not None:
            smallest = self.files.qcow2_size(disk_image)
            if wanted and wanted < smallest:
                raise NodeError("a disk of %s is smaller than the image %s, which needs %s" % (format_size(wanted), boot.image, format_size(smallest)))
        self.check_host(name, size, boot)

    def check_host(self, name: str, size: Size, boot: Boot) -> None:
        """Raise NodeError when this host lacks devices, CPUs or room for a node, whatever its image."""
        self.choose_seat(name, size, boot)
        wanted, free = boot.disk or 0, self.files.free(self.disk_dir)
        if free is not None and wanted > free:
            raise NodeError("a disk of %s does not fit in %s: %s are free" % (format_size(wanted), self.disk_dir, format_size(free // KIB * KIB)))

    def choose_seat(self, name: str, size: Size, boot: Boot, kind: str = "kvm") -> Seat:
        """Return where on this host a new node would be, of libvirt's domain type `kind` where that is known already; raise NodeError where it has none."""
        if boot.devices and not self._local:
            raise NodeError("devices: a host looks at its devices itself: reach it by ssh, and not by a libvirt URI of another machine")
        # Not itself: of a creation that was cut short it is there already.
        domains = [node for node in self.domains() if node.name != name] if boot.devices or boot.numa else []
        devices = read_devices() if boot.devices else []
        cells = self.cells() if boot.numa else []
        if cells:
            seat = choose_seat(name, size, boot, cells, domains=domains, cpu_overcommit=self.cpu_overcommit, devices=devices)
        else:
            pinned = read_cpuset(boot.cpuset, self.connection.getInfo()[2]) if boot.cpuset else []
            seat = Seat(None, pinned, choose_devices(boot.devices, devices, devices_taken(domains)))
        if seat.devices and kind != "kvm":
            raise NodeError("devices: a node has a device of its host only with hardware virtualisation, which does not work on this host")
        return seat

    def _define(self, name: str, step: Step, virtualization: str, warnings: list[str], *, seeded: bool) -> Any:
        """Return the new domain, which bears the mark of an unfinished creation."""
        size, boot = given(step.size), given(step.boot)
        disk_image, direct_boot = self._image(boot.image)
        self.files.make_folder(self.disk_dir)
        if self.files.exists(self.disk_path(name)):
            raise NodeError("%s exists although no node uses it: move it away or delete it" % self.disk_path(name))
        kind = self.kind(virtualization, warnings)
        seat = self.choose_seat(name, size, boot, kind)
        if self._domain(name) is not None:
            raise NodeError("%s was made by somebody else in the meantime" % name)
        return self.connection.defineXML(
            render_domain(
                name,
                size,
                boot,
                virtualization=kind,
                disk_path=self.disk_path(name),
                console_path=self.console_path(name),
                direct_boot=direct_boot,
                has_disk=disk_image is not None or boot.disk is not None,
                seed_path=self.seed_path(name) if seeded else None,
                seat=seat,
            )
        )

    def kind(self, wanted: str, warnings: list[str]) -> str:
        """Return libvirt's domain type: 'kvm' where a KVM guest really runs, which only trying tells, else 'qemu'."""
        if self.xen:
            return "xen"
        if wanted == "emulation":
            return "qemu"
        trouble = self._kvm_trouble()
        if trouble is None:
            return "kvm"
        if wanted == "hardware":
            raise NodeError("hardware virtualisation does not work on this host: %s" % trouble)
        warnings.append("the node runs in software emulation, many times slower than hardware virtualisation, which does not work on this host: %s" % trouble)
        return "qemu"

    def _kvm_trouble(self) -> str | None:
        """Return why KVM is not usable here, None when it is.

        /dev/kvm may exist, guests may even start, and yet crawl (nested virtualisation without hardware support); so a
        firmware is booted both ways, and must not be slower with KVM than in software emulation.
        """
        try:
            limit = PROBE_FACTOR * self._firmware_seconds("qemu", PROBE_SECONDS) + PROBE_SLACK
            self._firmware_seconds("kvm", limit)
        except (libvirt.libvirtError, NodeError) as error:
            return str(error)
        return None

    def _firmware_seconds(self, kind: str, limit: float) -> float:
        """Return how long a probe guest's firmware takes to boot; raise NodeError when it has not after `limit` seconds."""
        probe = (
            "<domain type='%s'><name>lepton-probe-%d</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>"
            "<os><type arch='x86_64' machine='q35'>hvm</type><bios useserial='yes'/></os>"
            "<devices><serial type='pty'/><console type='pty'/><memballoon model='none'/></devices></domain>" % (kind, os.getpid())
        )
        domain = stream = None
        seen = b""
        try:
            domain = self.connection.createXML(probe, libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY)
            stream = self.connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, stream, 0)
            domain.resume()
            began = time.monotonic()
            while PROBE_END not in seen:
                if time.monotonic() > began + limit:
                    raise NodeError("the firmware of a probe guest (%s) did not boot within %.1f s" % (kind, limit))
                received = stream.recv(4096)
                if isinstance(received, bytes):
                    seen += received
                else:
                    time.sleep(0.01)  # an event of the stream would tell, and is more code than it saves time
            return time.monotonic() - began
        finally:
            if stream is not None:
                stream.abort()
            if domain is not None:
                domain.destroy()

    def _create_disk(self, name: str, step: Step) -> None:
        boot = given(step.boot)
        disk_image, direct_boot = self._image(boot.image)
        if disk_image is None and boot.disk is None:
            return
        path = self._config_paths(self.domain(name))["disk"] or self.disk_path(name)
        self.files.make_disk(path, disk_image, boot.disk, raw=self.xen)

    def _config_paths(self, domain: Any) -> dict[str, Any]:
        return read_paths(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def _delete_files(self, domain: Any) -> None:
        """Delete the files that the domain itself names, as far as they lie where nodes' files lie, and are its own."""
        paths = self._config_paths(domain)
        disk, creating = paths["disk"], read_unfinished(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == "creating"
        # While a creation is unfinished, a file under the disk's name may be somebody else's.
        if disk and (not creating or self.files.is_own(disk)):
            self.files.delete(disk, self.disk_dir)
        # Another CD-ROM may be somebody's who put it there.
        seed = paths["seed"] if paths["seed"] == self.seed_path(domain.name()) else None
        for path in (disk and disk + ".partial", paths["console"], seed):
            if path:
                self.files.delete(path, self.disk_dir)

    def _take_back(self, domain: Any) -> None:
        """Undo a creation: this very domain, and the files that it names."""
        if domain.isActive():
            domain.destroy()
        self._delete_files(domain)
        domain.undefine()

    def finish(self, name: str) -> None:
        """Take the mark of an unfinished creation away."""
        self._mark(name, "")
        disk = self._config_paths(self.domain(name))["disk"]
        if disk:
            self.files.delete(disk + ".partial", self.disk_dir)

    def _mark(self, name: str, unfinished: str) -> None:
        xml = self.domain(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        self.connection.defineXML(marked(xml, unfinished))

    def _shutdown(self, name: str, wait_seconds: int) -> None:
        domain = self.domain(name)

        pressed: list[bool] = []

        def stopped() -> bool:
            return not domain.isActive()

        def press() -> None:
            try:
                domain.shutdown()
            except libvirt.libvirtError:
                if not pressed:  # Xen's driver was seen to refuse it once more while a guest goes down
                    raise
            pressed.append(True)

        if not self.wait(domain, stopped, wait_seconds, every=(REPRESS_SECONDS, press)):
            raise NodeError(
                "the guest did not power down within %d s; nothing was forced, but it may still do so later, and then has to be started" % wait_seconds
            )

    def _resize_live(self, name: str, step: Step, wait_seconds: int) -> None:
        domain = self.domain(name)
        before = read_size(domain.XMLDesc())
        size = given(step.size)
        if size.vcpus != before.vcpus:
            domain.setVcpusFlags(size.vcpus, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        actual = domain.memoryStats().get("actual", before.memory // KIB) * KIB
        if size.memory != actual:
            wanted = size.memory // KIB
            domain.setMemoryFlags(wanted, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            if not self.wait(domain, lambda: domain.memoryStats().get("actual") == wanted, wait_seconds):
                domain.setMemoryFlags(before.memory // KIB, libvirt.VIR_DOMAIN_AFFECT_LIVE)
                raise NodeError(
                    "the guest did not follow the memory change within %d s (does it have the virtio_balloon driver?); its memory target is as before"
                    % wait_seconds
                )

    def _resize_config(self, name: str, step: Step) -> None:
        xml = self.domain(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        self.connection.defineXML(resized(xml, given(step.size)))

    def wait(self, domain: Any, done: Callable[[], bool], seconds: int, every: tuple[float, Callable[[], Any]] | None = None) -> bool:
        """Return whether `done` came true in time, woken by the domain's own events; `every` repeats an action meanwhile."""
        happened = threading.Event()

        def woken(*_event: Any) -> None:
            happened.set()

        handles = [
            self.connection.domainEventRegisterAny(domain, event, woken, None)
            for event in (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE)
        ]
        deadline = time.monotonic() + seconds
        again = 0.0
        try:
            while not done():
                now = time.monotonic()
                if now > deadline:
                    return False
                if every and now >= again:
                    again = now + every[0]
                    with _ignoring_a_guest_that_just_ended():
                        every[1]()
                happened.wait(LOOK_SECONDS)
                happened.clear()
            return True
        finally:
            for handle in handles:
                self.connection.domainEventDeregisterAny(handle)


def _live_size(stats: Mapping[str, Any]) -> Size | None:
    """Return the size of a running domain, None where its driver's figures lack it (the test driver's do)."""
    try:
        vcpus, memory = (stats["vcpu.current"], stats["vcpu.maximum"]), (stats["balloon.current"], stats["balloon.maximum"])
    except KeyError:
        return None
    return Size(vcpus[0], memory[0] * KIB, vcpus[1], memory[1] * KIB)


def is_reachable(text: str) -> bool:
    """Return whether an address that a guest told of itself is one at which others may find it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


def owned(domains: Sequence[Node]) -> list[Node]:
    """Return those of a host's domains that bear our mark."""
    return [node for node in domains if node.boot is not None]


@contextmanager
def _ignoring_a_guest_that_just_ended() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise

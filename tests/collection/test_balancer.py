# SPDX-License-Identifier: Apache-2.0
"""A service at a load balancer: its file, HAProxy's tables, and plans of servers. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import (
    BalancerError,
    Entry,
    Server,
    agreement,
    failing,
    plan_entry,
    plan_server,
    read_entry,
    read_servers,
    read_statistics,
    render,
)
from ansible_collections.lepton.cloud.plugins.module_utils._haproxy import proxies
from ansible_collections.lepton.cloud.plugins.module_utils._service import Service, ServiceError, read_service, revision

SERVICE = Service(image="model:1", port=8080, listen_port=8000)
ONE, TWO = Server("chat-1", "10.0.0.7", 20000), Server("chat-2", "10.0.0.8", 20001, 50)
ENTRY = Entry("chat", SERVICE, 2, (ONE, TWO), 3)
# As HAProxy 2.6.12 answers `show servers state`: a drained server (8), one in maintenance (1), one without weight.
STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result \
srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr \
srv_agent_addr srv_agent_port
3 chat 1 chat-1 127.0.0.1 0 8 100 100 0 8 2 0 6 0 0 0 - 20000 - 0 0 - - 0
3 chat 2 chat-2 127.0.0.1 2 1 100 100 0 1 0 2 6 0 0 0 - 20001 - 0 0 - - 0
3 chat 3 chat-3 127.0.0.1 2 0 0 0 0 1 0 2 6 0 0 0 - 20002 - 0 0 - - 0
3 chat 4 chat-4 127.0.0.1 2 0 70 70 0 1 0 2 6 0 0 0 - 20003 - 0 0 - - 0
"""


@pytest.mark.parametrize("balance", [{}, {"balance": "hash", "hash_header": "X-Session"}, {"balance": "first", "max_concurrent": 8}])
def test_a_file_says_what_it_was_written_from(balance: dict[str, Any]) -> None:
    entry = replace(ENTRY, service=replace(SERVICE, environment=(("A", "{{ 1 }}"),), **balance))
    assert read_entry("chat", render(entry, "*")) == entry


def test_what_needs_a_reload_is_what_is_not_a_server() -> None:
    text = render(ENTRY, "*")
    assert proxies(render(replace(ENTRY, servers=(ONE,), replicas=5), "*")) == proxies(text)
    for change in ({"listen_port": 8001}, {"balance": "roundrobin"}, {"max_concurrent": 4}):
        assert proxies(render(replace(ENTRY, service=replace(SERVICE, **change)), "*")) != proxies(text)


def test_a_drained_server_and_one_in_maintenance_are_written_so() -> None:
    entry = replace(ENTRY, servers=(replace(ONE, state="drain"), replace(TWO, state="maint")))
    text = render(entry, "127.0.0.1")
    assert "chat-1 10.0.0.7:20000 check inter 1s fastinter 250ms downinter 1s fall 2 rise 1 weight 0 # drained, of weight 100\n" in text
    assert text.endswith(" weight 50 disabled\n")
    read = read_entry("chat", text)
    assert read is not None
    assert [server.state for server in read.servers] == ["drain", "maint"]
    assert not agreement(read, {"chat-1": replace(ONE, state="drain"), "chat-2": replace(TWO, state="maint")})


def test_files_of_others_and_broken_ones() -> None:
    assert read_entry("web", "frontend web\n  bind :80\n") is None
    with pytest.raises(BalancerError, match="cannot be read"):
        read_entry("chat", '# lepton: {"replicas": 1\n')


def test_haproxys_states_are_read() -> None:
    assert [(server.state, server.weight, server.port) for server in read_servers(STATE)["chat"].values()] == [
        ("drain", 100, 20000), ("maint", 100, 20001), ("drain", 0, 20002), ("ready", 70, 20003),
    ]  # fmt: skip
    with pytest.raises(BalancerError, match="something else than its servers"):
        read_servers("Unknown command\n")


def test_haproxys_counters_are_read() -> None:
    table = "# pxname,svname,qcur,scur,status,req_tot,hrsp_2xx,hrsp_5xx,econ,eresp,rtime,check_status,last_chk\n"
    table += "chat,chat-1,1,3,UP,,90,10,2,1,12,L7OK,\x1b[31mok\n"
    (row,) = read_statistics(table)["chat"]
    assert (row["sessions"], row["queued"], row["requests"], row["http_5xx"], row["response_ms"], row["last_check"]) == (3, 1, 100, 10, 12, "ok")


RUNNING = {"chat-1": ONE, "chat-2": TWO}


@pytest.mark.parametrize(
    ("name", "wish", "steps", "fields"),
    [
        ("chat-1", {"state": "ready"}, (), []),
        ("chat-1", {"state": "ready", "address": "10.0.0.7", "port": 20000, "weight": 100}, (), []),
        ("chat-1", {"state": "drain"}, ("drain", "wait"), ["state"]),
        ("chat-1", {"state": "maint"}, ("maint",), ["state"]),
        ("chat-1", {"state": "absent"}, ("drain", "wait", "maint", "delete"), ["state", "address"]),
        ("chat-9", {"state": "absent"}, (), []),
        ("chat-9", {"state": "ready", "address": "10.0.0.9", "port": 1}, ("add", "ready"), ["state", "address", "weight"]),
        ("chat-1", {"state": "ready", "weight": 7, "port": 9}, ("address", "weight"), ["address", "weight"]),
    ],
)
def test_plans_of_servers(name: str, wish: dict[str, Any], steps: tuple[str, ...], fields: list[str]) -> None:
    plan = plan_server(ENTRY, RUNNING, name, **{"address": None, "port": None, "weight": None, **wish})
    assert (plan.steps, [change.field for change in plan.changes]) == (steps, fields)
    assert plan.changed == bool(fields)


def test_a_file_that_lags_behind_is_a_change() -> None:
    plan = plan_server(replace(ENTRY, servers=(TWO,)), RUNNING, "chat-1", state="ready", address=None, port=None, weight=None)
    assert plan.changes[0].field == "file"
    assert plan.servers == (ONE, TWO)
    gone = plan_server(ENTRY, {"chat-2": TWO}, "chat-1", state="absent", address=None, port=None, weight=None)
    assert (gone.changes[0].field, gone.servers) == ("file", (TWO,))


@pytest.mark.parametrize(
    ("name", "wish", "reason"),
    [
        ("a b", {}, "is not a server name"),
        ("x;shutdown", {}, "is not a server name"),
        ("chat-9", {}, "an address and a port are needed"),
        ("chat-9", {"address": "10.0.0.7 check", "port": 1}, "is not an address"),
        ("chat-9", {"address": "h", "port": 70000}, "is not a port"),
        ("chat-1", {"weight": 0}, "use state=drain"),
        ("chat-1", {"weight": 257}, "HAProxy takes 1 to 256"),
    ],
)
def test_what_haproxy_would_misread_is_refused(name: str, wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(BalancerError, match=reason):
        plan_server(ENTRY, RUNNING, name, **{"state": "ready", "address": None, "port": None, "weight": None, **wish})


def test_every_change_of_what_is_wanted_is_a_new_version() -> None:
    new, changes = plan_entry(None, "chat", service=SERVICE, replicas=2, version=None)
    assert (new.version, new.replicas, changes[0]) == (1, 2, ("service", "absent", "present", "now"))
    same, changes = plan_entry(ENTRY, "chat", service=SERVICE, replicas=2, version=None)
    assert (same, changes) == (ENTRY, [])
    more, changes = plan_entry(ENTRY, "chat", service=None, replicas=3, version=None)
    assert (more.version, [tuple(change) for change in changes]) == (4, [("replicas", 2, 3, "now")])
    with pytest.raises(BalancerError, match="its declaration is needed"):
        plan_entry(None, "chat", service=None, replicas=1, version=None)


def test_a_server_is_failing_only_beyond_what_hits_the_others_too() -> None:
    def rows(own: tuple[int, int], others: tuple[int, int]) -> list[dict[str, Any]]:
        return [
            {"name": name, "requests": requests, "http_5xx": errors, "response_errors": 0}
            for name, (requests, errors) in {"chat-1": own, "chat-2": others, "BACKEND": (0, 0)}.items()
        ]

    before = rows((0, 0), (1000, 500))
    assert failing("chat-1", before, rows((100, 50), (1100, 500)), 0.05) == "50 of its 100 answers were errors (50 %, allowed are 5 %)"
    assert not failing("chat-1", before, rows((100, 50), (1100, 550)), 0.05)
    assert not failing("chat-1", before, rows((100, 5), (1100, 500)), 0.05)
    assert not failing("chat-1", before, before, 0.05)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("x", "expected a mapping"),
        ({"image": "m:1", "port": 1}, "listen_port is missing"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "replicas": 3}, "there is no field replicas"),
        ({"image": "m:1", "port": "x", "listen_port": 2}, "port: expected a whole number"),
        ({"image": "m:1", "port": 0, "listen_port": 2}, "0 is not a port"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "memory": "much"}, "memory: 'much' is not a size"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "min_replicas": 5}, "expected 0 <= min_replicas <= max_replicas"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "balance": "best"}, "balance: expected one of"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "balance": "hash"}, "go together"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "balance": "hash", "hash_header": "a b"}, "is not the name of a header"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "balance": "first"}, "needs max_concurrent"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "backend": "fleet"}, "backend: expected one of"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "environment": {"API_KEY": "x"}}, "use `secrets`"),
        ({"image": "m:1", "port": 1, "listen_port": 2, "health_path": "/a\n  server x y:1"}, "is not a path"),
        ({"image": "-v", "port": 1, "listen_port": 2}, "is not an image"),
    ],
)
def test_a_declaration_that_cannot_be_used_names_its_field(declared: Any, reason: str) -> None:
    with pytest.raises(ServiceError, match=reason):
        read_service("chat", declared)


def test_a_declaration_is_the_same_when_written_and_read_again() -> None:
    declared = {
        "image": "m:1", "port": "80", "listen_port": 81, "environment": {"B": 1, "A": "x"}, "command": ["a"], "memory": "1024MiB", "cpus": "0.5",
    }  # fmt: skip
    service = read_service("chat", declared)
    assert read_service("chat", service.to_fields()) == service
    assert service.to_fields()["memory"] == "1GiB"
    assert revision(service) != revision(replace(service, image="m:2"))
    assert revision(service) == revision(replace(service, memory="2GiB", max_replicas=9))


def test_a_reload_that_counts_anew_does_not_hide_errors() -> None:
    def row(requests: int, errors: int) -> dict[str, int | str]:
        return {"name": "chat-1", "requests": requests, "http_5xx": errors, "response_errors": 0}

    assert "10 of its 20 answers were errors" in failing("chat-1", [row(1000, 0)], [row(20, 10)], 0.05)

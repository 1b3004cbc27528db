# SPDX-License-Identifier: Apache-2.0
"""What somebody else's haproxy.cfg serves, as far as it is understood, and how it is replaced and given back. Pure."""

from __future__ import annotations

import re

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import BalancerError, Entry, Server, agreement, read_entry, render
from ansible_collections.lepton.cloud.plugins.module_utils._foreign import carried, given_back, read_proxies, replaced_by, without
from ansible_collections.lepton.cloud.plugins.module_utils._service import read_service

CONFIG = """global
  maxconn 100   # listen 80

defaults
  mode http

frontend www   # what people call
  bind *:8000
  bind 10.0.0.1:8000
  default_backend models

backend models
  balance roundrobin
  server Web1 10.0.0.5:8080 check weight 30
  server web2 10.0.0.6:8080 check inter 2s
  # server web3 10.0.0.7:8080

listen metrics
  bind 127.0.0.1:9000
  server m 127.0.0.1:9100

frontend mixed
  bind :8001
  use_backend a if { path /a }
  default_backend b
"""


def test_what_is_served_is_read() -> None:
    www, models, metrics, mixed = read_proxies(CONFIG)
    assert (www.kind, www.name, www.ports, www.default_backend) == ("frontend", "www", [8000, 8000], "models")
    assert models.servers == [Server("web1", "10.0.0.5", 8080, 30, checked=False), Server("web2", "10.0.0.6", 8080, 1, checked=False)]
    assert (metrics.kind, metrics.ports, len(metrics.servers)) == ("listen", [9000], 1)
    assert mixed.other_backends == ["a"]
    assert read_proxies("") == read_proxies("nonsense\n\x00 server a b:1") == []


def test_a_service_takes_the_place_of_who_listens_on_its_port_and_of_nobody_else() -> None:
    proxies = read_proxies(CONFIG)
    assert replaced_by(proxies, 8000) == ["www", "models"]
    assert replaced_by(proxies, 9000) == ["metrics"]
    assert replaced_by(proxies, 7000) == []
    # HAProxy's weights are shares of each other, and one that says none is of weight 1.
    assert [(server.name, server.weight) for server in carried(proxies, ["www", "models"])] == [("web1", 100), ("web2", 3)]
    with pytest.raises(BalancerError, match=r"mixed chooses between backends \(a\)"):
        replaced_by(proxies, 8001)
    with pytest.raises(BalancerError, match="other sends to a backend of it as well"):
        replaced_by(read_proxies(CONFIG + "frontend other\n  bind :8002\n  default_backend models\n"), 8000)
    with pytest.raises(BalancerError, match="www listens on other ports as well"):
        replaced_by(read_proxies(CONFIG.replace("bind *:8000", "bind *:8000-8010")), 8005)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ("bind *:8000", "bind *:8000 ssl crt /etc/x.pem", "bind ssl"),
        ("default_backend models", "default_backend models\n  http-request auth unless { http_auth(u) }", "http-request auth"),
        ("default_backend models", "default_backend models\n  option forwardfor", "option forwardfor"),
        ("balance roundrobin", "balance source", "balance source"),
        ("balance roundrobin", "mode tcp", "mode tcp"),
        ("balance roundrobin", "cookie SRV insert", "cookie SRV"),
        ("check inter 2s", "check backup", "backup of server web2"),
        ("check inter 2s", "disabled", "disabled of server web2"),
        ("check inter 2s", "ssl verify required", "ssl of server web2"),
        ("server web2 10.0.0.6:8080", "server web2 /run/x.sock", "server web2 /run/x.sock"),
    ],
)
def test_what_a_service_would_not_do_is_not_lost_in_silence(before: str, after: str, lost: str) -> None:
    with pytest.raises(BalancerError, match=re.escape(lost)):
        replaced_by(read_proxies(CONFIG.replace(before, after)), 8000)


def test_what_is_replaced_is_a_comment_and_can_be_given_back() -> None:
    after = without(CONFIG, "chat", ["www", "models"])
    assert [proxy.name for proxy in read_proxies(after)] == ["metrics", "mixed"]
    assert given_back(after, "chat") == CONFIG
    assert given_back(after, "other") == after
    assert without(after, "chat", ["www", "models"]) == after


def test_a_server_that_was_taken_over_is_not_asked_for_a_health_that_it_may_not_know() -> None:
    service = read_service("chat", {"image": "m:1", "port": 1, "listen_port": 8000})
    entry = Entry("chat", service, 1, (Server("chat-1", "127.0.0.1", 20000), Server("web1", "10.0.0.5", 8080, checked=False)))
    text = render(entry, "*")
    assert "server web1 10.0.0.5:8080 weight 100\n" in text
    assert read_entry("chat", text) == entry
    assert agreement(entry, {"chat-1": Server("chat-1", "127.0.0.1", 20000), "web1": Server("web1", "10.0.0.5", 8080)}) == []

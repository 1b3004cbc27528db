# SPDX-License-Identifier: Apache-2.0
"""Write Grafana's dashboards of the role `monitoring`: `make docs` runs this, and a test that nothing else has written them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import stat, timeseries
from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, QueryVariable, Row, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, Threshold, ThresholdsMode, VariableOption

FOLDER = Path(__file__).parent.parent / "collections/ansible_collections/lepton/cloud/roles/monitoring/files/dashboards"
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="lepton-prometheus")  # as the role provisions it
RATIO, BYTES, COUNT, PER_SECOND, SECONDS = "percentunit", "bytes", "short", "reqps", "s"
HIGH = ((0.0, "green"), (0.75, "orange"), (0.9, "red"))  # of ratios
ANY = ((0.0, "green"), (1.0, "red"))  # of what there should be none of
WIDE, HALF, SMALL = 24, 12, 6  # columns of 24


@dataclass(frozen=True)
class Graph:
    """A panel over time: its lines by their legends."""

    title: str
    unit: str
    lines: dict[str, str]
    note: str = ""
    span: int = HALF


@dataclass(frozen=True)
class Figure:
    """A panel of how things are now."""

    title: str
    unit: str
    expr: str
    steps: Sequence[tuple[float, str]] = ((0.0, "green"),)
    legend: str = ""


@dataclass(frozen=True)
class Page:
    """A dashboard: what can be chosen on it, as (name, of which metric), and its rows of panels."""

    title: str
    choices: Sequence[tuple[str, str]]
    rows: dict[str, Sequence[Graph | Figure]]


HOSTS = Page(
    "Lepton: hosts", [("host", "node_uname_info")],
    {
        "Now": [
            Figure("Hosts that answer", COUNT, 'sum(up{job="node"})'),
            Figure("Hosts that do not", COUNT, 'sum(up{job="node"} == bool 0)', ANY),
            Figure("Fullest memory", RATIO, "max(host:memory_used:ratio)", HIGH),
            Figure("Fullest file system", RATIO, "max(host:filesystem_used:ratio)", HIGH),
        ],
        "Over time": [
            Graph("CPU", RATIO, {"{{host}}": 'host:cpu_used:ratio{host=~"$host"}'}),
            Graph("Memory", RATIO, {"{{host}}": 'host:memory_used:ratio{host=~"$host"}'}),
            Graph("File systems", RATIO, {"{{host}} {{device}}": 'host:filesystem_used:ratio{host=~"$host"}'}),
            Graph("Load per CPU", COUNT, {
                "{{host}}": 'max by (host) (node_load1{host=~"$host"}) / count by (host) (node_cpu_seconds_total{mode="idle", host=~"$host"})',
            }),
            Graph("Network", "Bps", {
                "{{host}} in": 'sum by (host) (rate(node_network_receive_bytes_total{device!="lo", host=~"$host"}[$__rate_interval]))',
                "{{host}} out": 'sum by (host) (rate(node_network_transmit_bytes_total{device!="lo", host=~"$host"}[$__rate_interval]))',
            }),
            Graph("Disks", "Bps", {
                "{{host}} read": 'sum by (host) (rate(node_disk_read_bytes_total{host=~"$host"}[$__rate_interval]))',
                "{{host}} written": 'sum by (host) (rate(node_disk_written_bytes_total{host=~"$host"}[$__rate_interval]))',
            }),
        ],
    },
)  # fmt: skip
NODES = Page(
    "Lepton: nodes and containers", [("host", 'up{job=~"libvirt|containers"}')],
    {
        "Nodes": [
            Graph("vCPUs used", RATIO, {"{{node}}": 'node:cpu_used:ratio{host=~"$host"}'}, "Of those that the node has."),
            Graph("Memory given", BYTES, {"{{node}}": 'node:memory:bytes{host=~"$host"}'}),
            Graph("vCPUs given", COUNT, {"{{host}}": 'sum by (host) (libvirt_domain_info_virtual_cpus{host=~"$host"})'}),
            Graph("Disks", "Bps", {
                "{{node}} read": 'sum by (node) (rate(libvirt_domain_block_stats_read_bytes_total{host=~"$host"}[$__rate_interval]))',
                "{{node}} written": 'sum by (node) (rate(libvirt_domain_block_stats_write_bytes_total{host=~"$host"}[$__rate_interval]))',
            }),
        ],
        "Containers": [
            Graph("CPUs used", COUNT, {"{{container}}": 'sum by (container) (rate(container_cpu_usage_seconds_total{host=~"$host"}[$__rate_interval]))'}),
            Graph("Memory used", BYTES, {"{{container}}": 'max by (container) (container_memory_working_set_bytes{host=~"$host"})'},
                  "The working set, by which the kernel ends a container that reaches its limit."),
        ],
    },
)  # fmt: skip
SERVICES = Page(
    "Lepton: services", [("service", "haproxy_backend_http_requests_total")],
    {
        "Now": [
            Figure("Requests", PER_SECOND, 'sum(service:requests:rate1m{service=~"$service"})'),
            Figure("Errors", RATIO, 'sum(service:errors:rate1m{service=~"$service"}) / sum(service:requests:rate1m{service=~"$service"})',
                   ((0.0, "green"), (0.01, "orange"), (0.05, "red"))),
            Figure("Requests that wait", COUNT, 'sum(service:queue:requests{service=~"$service"})', ((0.0, "green"), (1.0, "orange"))),
            Figure("Replicas that do not serve", COUNT,
                   'sum(service:replicas:count{service=~"$service"}) - sum(service:replicas_up:count{service=~"$service"})', ANY),
        ],
        "Over time": [
            Graph("Requests", PER_SECOND, {"{{service}}": 'service:requests:rate1m{service=~"$service"}'}),
            Graph("Replicas that serve", COUNT, {"{{service}}": 'service:replicas_up:count{service=~"$service"}'}),
            Graph("Answers by kind", PER_SECOND, {
                "{{service}} {{code}}": 'sum by (service, code) (rate(haproxy_backend_http_responses_total{service=~"$service"}[$__rate_interval]))',
            }),
            Graph("Time to answer, on average", SECONDS, {"{{service}}": 'service:latency_average:seconds{service=~"$service"}'},
                  "Over the last 1024 requests."),
            Graph("Requests under way, by replica", COUNT, {"{{replica}}": 'sum by (replica) (haproxy_server_current_sessions{service=~"$service"})'}),
            Graph("Requests that wait", COUNT, {"{{service}}": 'service:queue:requests{service=~"$service"}'}),
        ],
        "Scaling": [
            Graph("Replicas wanted", COUNT, {"{{service}}": 'lepton_scaling_replicas{service=~"$service"}'},
                  "What Lepton decided last. lepton scaling why SERVICE says why.", WIDE),
        ],
    },
)  # fmt: skip
GPUS = Page(
    "Lepton: GPUs", [("host", "DCGM_FI_DEV_GPU_UTIL")],
    {
        "Over time": [
            Graph("Used", RATIO, {"{{host}} {{gpu}}": 'gpu:used:ratio{host=~"$host"}'}),
            Graph("Memory", RATIO, {"{{host}} {{gpu}}": 'gpu:memory_used:ratio{host=~"$host"}'}),
            Graph("Temperature", "celsius", {"{{host}} {{gpu}}": 'max by (host, gpu) (DCGM_FI_DEV_GPU_TEMP{host=~"$host"})'}),
            Graph("Power", "watt", {"{{host}} {{gpu}}": 'max by (host, gpu) (DCGM_FI_DEV_POWER_USAGE{host=~"$host"})'}),
        ]
    },
)  # fmt: skip
LEPTON = Page(
    "Lepton: itself", [],
    {
        "Now": [
            Figure("Lepton answers", COUNT, 'min(up{job="lepton"})', ((0.0, "red"), (1.0, "green"))),
            Figure("Oldest decision", SECONDS, "max(time() - lepton_scaling_last_decision_timestamp_seconds)",
                   ((0.0, "green"), (45.0, "orange"), (90.0, "red"))),
            Figure("Services scaled blindly", COUNT, "sum(lepton_scaling_blind)", ANY),
            Figure("Alerts that wait", COUNT, "sum(lepton_alerts_waiting)", ((0.0, "green"), (100.0, "orange"))),
        ],
        "Over time": [
            Graph("Runs that ended", COUNT, {"{{operation}} {{state}}": "sum by (operation, state) (increase(lepton_runs_total[$__rate_interval]))"}),
            Graph("How long they took, at p95", SECONDS, {
                "{{operation}}": "histogram_quantile(0.95, sum by (operation, le) (rate(lepton_run_duration_seconds_bucket[$__rate_interval])))",
            }),
            Graph("Decisions", COUNT, {"{{outcome}}": "sum by (outcome) (increase(lepton_scaling_decisions_total[$__rate_interval]))"}),
            Graph("Alerts received", COUNT, {"{{result}}": "sum by (result) (increase(lepton_alerts_total[$__rate_interval]))"}),
        ],
    },
)  # fmt: skip
PAGES = {"hosts": HOSTS, "nodes": NODES, "services": SERVICES, "gpus": GPUS, "lepton": LEPTON}


def dashboard(name: str) -> str:
    """Return a dashboard as the JSON that Grafana provisions."""
    page = PAGES[name]
    built = Dashboard(page.title).uid(f"lepton-{name}").tags(["lepton"]).time("now-6h", "now").refresh("30s").tooltip(DashboardCursorSync.CROSSHAIR).readonly()
    for choice, metric in page.choices:
        everything = VariableOption(text="All", value="$__all", selected=True)
        chosen = QueryVariable(choice).query(f"label_values({metric}, {choice})").datasource(PROMETHEUS)
        built.with_variable(chosen.multi(True).include_all(True).all_value(".*").current(everything))
    ids = count(1)
    for row, panels in page.rows.items():
        built.with_row(Row(row).id(next(ids)))
        for panel in panels:
            built.with_panel((_graph(panel) if isinstance(panel, Graph) else _figure(panel)).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _query(expr: str, legend: str, ref_id: str) -> Dataquery:
    return Dataquery().expr(expr).legend_format(legend).ref_id(ref_id).datasource(PROMETHEUS)


def _graph(panel: Graph) -> timeseries.Panel:
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    built = timeseries.Panel().title(panel.title).unit(panel.unit).min(0).span(panel.span).height(8).legend(legend).fill_opacity(10).datasource(PROMETHEUS)
    if panel.note:
        built.description(panel.note)
    for number, (said, expr) in enumerate(panel.lines.items()):
        built.with_target(_query(expr, said, "ABCDEF"[number]))
    return built


def _figure(panel: Figure) -> stat.Panel:
    # Grafana wants the lowest step without a number.
    steps = [Threshold(value=value if number else None, color=color) for number, (value, color) in enumerate(panel.steps)]
    thresholds = ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    built = stat.Panel().title(panel.title).unit(panel.unit).span(SMALL).height(4).thresholds(thresholds).datasource(PROMETHEUS)
    return built.with_target(_query(panel.expr, panel.legend, "A").instant())


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name in PAGES:
        (folder / f"{name}.json").write_text(dashboard(name), encoding="utf-8")

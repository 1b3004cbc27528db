# SPDX-License-Identifier: Apache-2.0
"""The command `lepton`: the same words as in Slack, and what only a terminal needs."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lepton_ai.asking import ask, stored_run, stored_runs, unwatched
from lepton_ai.cli_rights import JsonOption, SiteOption, access_app, audit_app, freeze, locks_app, read_moment, unfreeze
from lepton_ai.cli_scaling import scaling_app
from lepton_ai.doctor import examine
from lepton_ai.errors import LeptonError
from lepton_ai.logs import configure_logs
from lepton_ai.operations.catalog import Operation, load_catalog
from lepton_ai.operations.help import help_text, usage
from lepton_ai.operations.parsing import read_arguments
from lepton_ai.operations.reference import reference_page
from lepton_ai.paths import builtin_playbooks
from lepton_ai.runs.model import Run, State
from lepton_ai.sandbox.stand import stand, stop_stand
from lepton_ai.sandbox.tour import Tour, commands
from lepton_ai.settings import Secrets, Settings, load_settings, settings_schema
from lepton_ai.simulate import REFUSED, simulate, simulate_alert
from lepton_ai.site import make_site
from lepton_ai.slack.views import plain_text, run_message
from lepton_ai.web.client import service

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="An AI cloud on your own hosts, run from Slack.")
runs_app = typer.Typer(invoke_without_command=True, help="What was asked for, and what became of it.")
app.add_typer(runs_app, name="runs")
app.add_typer(access_app, name="access")
app.add_typer(audit_app, name="audit")
app.add_typer(locks_app, name="locks")
app.add_typer(scaling_app, name="scaling")
app.command()(freeze)
app.command()(unfreeze)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
EXIT = {State.SUCCEEDED: 0, State.CANCELED: 3, State.INTERRUPTED: 4, State.TIMED_OUT: 5}
WAITS = 6  # exit status of what waits for approval
SANDBOX_PORT = 8020


def _complete(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Offer nouns, verbs and parameters, whatever stands before."""
    try:
        catalog = load_settings().catalog()
    except LeptonError:
        catalog = load_catalog({"built-in": builtin_playbooks()})
    typed = context.params.get("words") or []
    if not typed:
        offers = catalog.nouns()
    elif len(typed) == 1:
        offers = [operation.verb for operation in catalog.verbs(typed[0])]
    else:
        operation = catalog.operations.get(f"{typed[0]}.{typed[1]}")
        offers = [f"{name}=" for name in operation.spec.options] if operation else []
    yield from (offer for offer in offers if offer.startswith(incomplete))


WordsArgument = Annotated[list[str], typer.Argument(help="NOUN VERB [VALUE…] [NAME=VALUE…]", autocompletion=_complete)]


@app.command()
def run(
    words: WordsArgument,
    site: SiteOption = None,
    as_json: JsonOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before something is destroyed.")] = False,
    why: Annotated[str, typer.Option(help="A reason for the audit trail.")] = "",
    at: Annotated[str, typer.Option(help="Later: 02:00, 30m (from now) or 2026-12-24T02:00; needs a running service.")] = "",
    canary: Annotated[bool, typer.Option("--canary", help="On one host first, and on the others when that went well.")] = False,
) -> None:
    """Do an operation: `lepton run node resize web-1 vcpus=4`."""
    _operate(words, site, as_json, check=False, yes=yes, why=why, at=at, canary=canary)


@app.command()
def schema() -> None:
    """Print the JSON schema of lepton.yml, for editors."""
    print(json.dumps(settings_schema(), indent=2))


@app.command()
def plan(words: WordsArgument, site: SiteOption = None, as_json: JsonOption = False) -> None:
    """Show what an operation would change, and change nothing."""
    _operate(words, site, as_json, check=True, yes=True, why="")


def _operate(words: list[str], site: Path | None, as_json: bool, *, check: bool, yes: bool, why: str, at: str = "", canary: bool = False) -> None:
    settings = load_settings(site)
    due = read_moment(settings, at) if at else 0.0
    catalog = settings.catalog()
    for problem in catalog.problems:
        err.print(f"lepton: {problem}", style="yellow", markup=False)
    if len(words) < 2:
        raise LeptonError("a command is a noun and a verb", hint=_without_marks(help_text(catalog, words, "lepton run")))
    operation = catalog.find(words[0], words[1])
    values = read_arguments(operation, words[2:])
    if operation.spec.risk == "destroy" and not check and not yes:
        with _watching(as_json) as watch:
            planned = ask(settings, operation, values, check=True, why=why, watch=watch)
        _report(planned, as_json=False)
        if State(planned["state"]) is not State.SUCCEEDED:
            raise typer.Exit(1)
        if not sys.stdin.isatty():
            raise LeptonError(f"{operation.name} destroys, and nobody is here to be asked", hint="say --yes")
        typer.confirm("Do it?", abort=True)
    with _watching(as_json) as watch:
        ended = ask(settings, operation, values, check=check, why=why, canary=canary, due=due, watch=watch)
    _report(ended, as_json)
    if due and not State(ended["state"]).final:
        raise typer.Exit(0)
    if ended["check"] and not check and State(ended["state"]) is State.SUCCEEDED:
        raise typer.Exit(WAITS)
    raise typer.Exit(EXIT.get(State(ended["state"]), 1))


@contextmanager
def _watching(quiet: bool) -> Iterator[Any]:
    """Show progress: one line that changes on a terminal, a line per task otherwise, nothing with --json."""
    if quiet:
        yield unwatched
    elif err.is_terminal:
        with err.status("queued") as status:
            yield lambda run: status.update(_progress_line(run))
    else:
        last = [""]

        def line(run: Mapping[str, Any]) -> None:
            text = _progress_line(run)
            if text != last[0]:
                last[0] = text
                err.print(text, markup=False)

        yield line


def _progress_line(run: Mapping[str, Any]) -> str:
    progress = run.get("progress", {})
    return " · ".join(part for part in (run["state"], progress.get("play", ""), progress.get("task", "")) if part)


def _report(run: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(run, indent=2, default=str))
    else:
        out.print(_without_marks(plain_text(run_message(_run_value(run)).blocks)), markup=False)


def _run_value(data: Mapping[str, Any]) -> Run:
    fields: dict[str, Any] = {name: data[name] for name in Run.__dataclass_fields__}
    return Run(**{**fields, "state": State(data["state"])})


def _without_marks(text: str) -> str:
    for mark in ("```\n", "\n```", "*", "`"):
        text = text.replace(mark, "")
    for icon, shown in (
        (":white_check_mark:", "✓"),
        (":x:", "✗"),
        (":warning:", "!"),
        (":black_square_for_stop:", "■"),
        (":zap:", "!"),
        (":alarm_clock:", "✗"),
    ):
        text = text.replace(icon, shown)
    return text


@runs_app.callback()
def runs(context: typer.Context, site: SiteOption = None, limit: int = 20, as_json: JsonOption = False) -> None:
    """List the newest runs."""
    if context.invoked_subcommand is not None:
        return
    found = stored_runs(load_settings(site), limit)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for item in found:
        arguments = " ".join(f"{name}={value}" for name, value in item["arguments"].items() if value not in (None, False))
        out.print(f"{item['id']}  {item['state']:<11} {'plan ' if item['check'] else ''}{item['operation']} {arguments}  ({item['principal']})", markup=False)


@runs_app.command("show")
def runs_show(run_id: str, site: SiteOption = None, as_json: JsonOption = False) -> None:
    """Show one run: what changed, and its audit trail."""
    settings = load_settings(site)
    found = stored_run(settings, run_id)
    if as_json:
        print(json.dumps(found, indent=2, default=str))
        return
    _report(found, as_json=False)
    for entry in found["audit"]:
        out.print(f"{entry['at']:.3f}  {entry['what']:<12} {entry['principal']}  {json.dumps(entry['data'])[:400]}", markup=False)
    output = settings.state_dir / "output" / f"{run_id}.txt"
    if output.exists():
        out.print(f"Ansible's output: {output}", markup=False)


@runs_app.command("cancel")
def runs_cancel(run_id: str, site: SiteOption = None) -> None:
    """End a run of the service."""
    client = service(load_settings(site).socket)
    if client is None:
        raise LeptonError("no service runs here", hint="a run in a terminal ends with Ctrl-C there")
    out.print("canceling" if client.cancel(run_id) else "it has ended already")


@runs_app.command("again")
def runs_again(
    run_id: str,
    site: SiteOption = None,
    failed_hosts: Annotated[bool, typer.Option("--failed-hosts", help="Only on the hosts on which it went wrong.")] = False,
) -> None:
    """Ask the service for the same once more."""
    client = service(load_settings(site).socket)
    if client is None:
        raise LeptonError("no service runs here", hint="ask again with: lepton run")
    out.print(f"run {client.again(run_id, failed_hosts=failed_hosts)['id']}", markup=False)


@app.command()
def approve(plan_id: str, site: SiteOption = None) -> None:
    """Approve a plan that waits for it; what was planned then runs in the service."""
    _decide(plan_id, site, approved=True)


@app.command()
def reject(plan_id: str, site: SiteOption = None) -> None:
    """Reject a plan that waits for approval, or take back one's own."""
    _decide(plan_id, site, approved=False)


def _decide(plan_id: str, site: Path | None, *, approved: bool) -> None:
    client = service(load_settings(site).socket)
    if client is None:
        raise LeptonError("no service runs here", hint="what is approved runs in it: lepton serve")
    released = client.decide(plan_id, approved=approved)
    out.print(f"released as run {released['id']}" if released else "noted")


@app.command()
def operations(
    words: Annotated[list[str] | None, typer.Argument(help="[NOUN [VERB]]")] = None,
    site: SiteOption = None,
    as_json: JsonOption = False,
    reference: Annotated[bool, typer.Option("--reference", help="Print the reference page of the built-in operations.")] = False,
) -> None:
    """List the operations, or explain one."""
    if reference:
        print(reference_page(load_catalog({"built-in": builtin_playbooks()})), end="")
        return
    try:
        catalog = load_settings(site).catalog()
    except LeptonError:
        if site is not None:
            raise
        catalog = load_catalog({"built-in": builtin_playbooks()})
    if as_json:
        print(json.dumps([_operation_json(item) for item in catalog], indent=2))
    elif words:
        out.print(_without_marks(help_text(catalog, words, "lepton run")), markup=False)
    else:
        for item in catalog:
            notes = ", ".join(
                [item.spec.risk, *([] if item.guarded else ["plain runs of it are unguarded"]), *([] if item.origin == "built-in" else [item.origin])]
            )
            out.print(f"{usage(item, 'lepton run')}\n    {item.spec.summary} ({notes})", markup=False)
    for problem in catalog.problems:
        err.print(f"cannot be used: {problem}", style="red", markup=False)
    for override in catalog.overrides:
        err.print(f"override: {override}", style="yellow", markup=False)


def _operation_json(operation: Operation) -> dict[str, Any]:
    shown = {"operation": operation.name, "risk": operation.spec.risk, "summary": operation.spec.summary, "guarded": operation.guarded}
    return {**shown, "playbook": str(operation.playbook), "origin": operation.origin}


@app.command("simulate")
def simulate_line(
    line: Annotated[str, typer.Argument(help="A line as it would be typed, '/lepton node resize web-1 vcpus=4'; or the word alert.")],
    file: Annotated[Path | None, typer.Argument(help="After alert: a file with what Alertmanager would post.")] = None,
    user: Annotated[str, typer.Option("--as", help="The Slack user's id, for a line.")] = "",
    channel: Annotated[str, typer.Option("--in", help="The Slack channel's id, for a line.")] = "",
    team: Annotated[str, typer.Option(help="The Slack workspace's id; the first one in the site's grants by default.")] = "",
    group: Annotated[list[str] | None, typer.Option(help="A user group's id the user is in; may be repeated.")] = None,
    site: SiteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would come of a line in Slack or of an alert: the verdict, the plan, the message. Nothing is asked, nothing changes."""
    settings = load_settings(site)
    if line == "alert" and file is not None:
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LeptonError(f"{file} cannot be read: {error}") from error
        found = simulate_alert(settings, content)
    elif file is not None or not (user and channel):
        raise LeptonError("a line needs --as USER and --in CHANNEL, and an alert a file", hint="lepton simulate alert FILE")
    else:
        found = [simulate(settings, line, user=user, team=team or _first_team(settings), channel=channel, groups=group or ())]
    if as_json:
        print(json.dumps([item.__dict__ for item in found] if line == "alert" else found[0].__dict__, indent=2))
    else:
        for item in found:
            said = f"{item.asked}\n" if item.asked else ""
            out.print(f"{said}{item.verdict}: {item.rule}" + (" (a form opens)" if item.opens_form else ""), markup=False)
            out.print(_without_marks(plain_text(item.blocks)), markup=False)
    raise typer.Exit(1 if any(item.verdict == REFUSED for item in found) else 0)


def _first_team(settings: Settings) -> str:
    principals = [principal for grant in settings.access.grants for principal in grant.principals]
    return next((principal.partition(":")[2].partition("/")[0] for principal in principals if principal.startswith("slack")), "T0")


@app.command()
def serve(site: SiteOption = None) -> None:
    """Run the service: the Slack bot, the queue, and the socket that the other commands use."""
    try:
        from lepton_ai.serve import serve as serve_forever  # all doors at once: other commands begin without them

        asyncio.run(serve_forever(load_settings(site), Secrets()))
    except BaseExceptionGroup as group:
        known, unknown = group.split(LeptonError)
        if unknown is not None or known is None:
            raise
        raise known.exceptions[0] from None


@app.command()
def sandbox(
    folder: Annotated[Path, typer.Option(help="Everything of the sandbox stands below this folder.")] = Path(".sandbox"),
    port: Annotated[int, typer.Option(help="Port of the workspace's page.")] = SANDBOX_PORT,
    script: Annotated[bool, typer.Option("--script", help="Play the tour and end; non-zero when a step is not as it should be.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="End and remove everything below the folder.")] = False,
) -> None:
    """A Slack workspace, a hypervisor, containers, a load balancer and the bot on this machine, to try Lepton in. No account, no credentials."""
    if clean:
        stop_stand(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return
    # A shell starts background jobs with SIGINT ignored; SIGTERM would leave the bot behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with stand(folder, port=0 if script else port) as running:
        if script:
            Tour(running, out).play()
            out.print("\nEvery step was as it should be.")
            return
        out.print(f"\nThe workspace is open at [bold]{running.base_url}[/bold]\n\nType there, for example:")
        for line in commands(8090):
            out.print(f"  {line}", markup=False)
        out.print(f"\nThe guest then answers at http://127.0.0.1:8090/cgi-bin/status, the service at http://127.0.0.1:{running.service_port}/")
        out.print(f"The bot's log: {running.bot.log}\nEnd with Ctrl-C; remove everything with: make demo-clean")
        assert running.bot.process is not None
        try:
            running.bot.process.wait()
        except KeyboardInterrupt:
            return
        raise LeptonError("the bot has ended", hint=running.bot.log.read_text()[-2000:])


@app.command()
def doctor(site: SiteOption = None, as_json: JsonOption = False) -> None:
    """Say what is here, what is missing and how to get it, and how each host answers."""
    findings = examine(site)
    if as_json:
        print(json.dumps([finding.__dict__ for finding in findings], indent=2))
    else:
        for finding in findings:
            out.print(f"{'✓' if finding.good else '✗'} {finding.what}: {finding.detail}" + (f"\n    {finding.hint}" if finding.hint else ""), markup=False)
    raise typer.Exit(0 if all(finding.good or finding.optional for finding in findings) else 1)


@app.command()
def init(folder: Path) -> None:
    """Make a site to start from: settings, inventory, own playbooks, the Slack app's manifest."""
    for path in make_site(folder):
        out.print(f"wrote {path}", markup=False)
    out.print(f"\nNext: put your hosts into {folder}/inventory/hosts.yml, then: lepton doctor --site {folder}", markup=False)


def main() -> None:
    """Run the command; what a person can act on is one sentence, never a traceback."""
    configure_logs()
    try:
        app()
    except LeptonError as error:
        err.print(f"lepton: {error}", style="red", markup=False)
        raise SystemExit(2) from None

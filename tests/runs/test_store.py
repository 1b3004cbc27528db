# SPDX-License-Identifier: Apache-2.0
"""The database, on SQLite and on PostgreSQL: the same answers."""

import secrets
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import postgres_programs

from lepton_ai.errors import LeptonError
from lepton_ai.runs.leases import process_holder, release, try_acquire
from lepton_ai.runs.model import Request, Result, State
from lepton_ai.runs.store import Store


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of the test run's own."""
    programs = postgres_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="leppg"))
    folder.chmod(0o777)
    data = folder / "data"
    # PostgreSQL refuses to run as root.
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if Path("/proc/self").stat().st_uid == 0 else []
    subprocess.run([*as_postgres, programs / "initdb", "-D", data, "-A", "trust", "-U", "lepton"], check=True, capture_output=True, cwd="/")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
    subprocess.run(
        [*as_postgres, programs / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start"], check=True, capture_output=True, cwd="/"
    )
    yield f"postgresql+psycopg://lepton@/postgres?host={folder}"
    subprocess.run([*as_postgres, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    opened = Store(tmp_path, url)
    yield opened
    if url:
        with opened.engine.begin() as connection:
            from lepton_ai.runs.tables import metadata

            metadata.drop_all(connection)
    opened.close()


def request_of(key: str = "k", **more: object) -> Request:
    return Request("node.resize", {"node": "web-1"}, "os:0@here", key=key, **more)  # type: ignore[arg-type]


def test_a_key_is_one_run_however_many_ask_at_once(any_store: Store) -> None:
    seen: list[tuple[str, bool]] = []

    def ask() -> None:
        run, new = any_store.add_run(secrets.token_hex(4), request_of(), risk="change", shown_arguments={})
        seen.append((run.id, new))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run for run, _ in seen}) == 1
    assert [new for _, new in seen].count(True) == 1
    assert [entry["what"] for entry in any_store.audit()] == ["requested"]


def test_a_run_ends_once(any_store: Store) -> None:
    run, _ = any_store.add_run("one", request_of(origin={"door": "slack"}), risk="change", shown_arguments={})
    assert any_store.unfinished() == [run]
    assert any_store.set_running(run.id, "ansible-playbook …")
    assert any_store.finish(run.id, State.SUCCEEDED, Result(changed_hosts=["here"]))
    assert not any_store.finish(run.id, State.FAILED, Result(), "late")
    assert not any_store.set_running(run.id, "again")
    ended = any_store.run(run.id)
    assert (ended.state, ended.result["changed_hosts"], ended.error) == (State.SUCCEEDED, ["here"], "")
    assert any_store.unfinished() == []
    assert [undelivered.id for undelivered in any_store.undelivered()] == [run.id]
    any_store.set_delivered(run.id)
    assert any_store.undelivered() == []


def test_leases_hold_on_every_database(any_store: Store) -> None:
    assert try_acquire(any_store, process_holder("a"), ["x", "y"]) == []
    assert try_acquire(any_store, process_holder("b"), ["y"]) == ["a"]
    release(any_store, "a")
    assert try_acquire(any_store, process_holder("b"), ["y"]) == []


def test_a_run_that_does_not_exist_is_said(any_store: Store) -> None:
    with pytest.raises(LeptonError, match="there is no run nope"):
        any_store.run("nope")


def test_a_database_that_cannot_be_used_is_said_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(LeptonError, match="cannot be used") as caught:
        Store(tmp_path, "postgresql+psycopg://u:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


def test_a_database_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with first.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE lepton_attempts RENAME COLUMN owner TO other")
    first.close()
    with pytest.raises(LeptonError, match="lepton_attempts lacks owner"):
        Store(tmp_path)

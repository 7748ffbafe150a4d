"""Fixtures that every test folder may use (loaded by the root conftest)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.postgres import PostgresServer


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After a run of all tests: how much of the contract is built."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    from testkit.contract_surface import NOT_BUILT, rules, table

    reference = {row["operationId"] for row in table("operations")}
    waiting = {name for name in reference if NOT_BUILT in rules()[name].contract.errors}
    built = len(reference - waiting)
    terminalreporter.write_line(f"contract: {built} of {len(reference)} operations of the reference answer in full")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One real PostgreSQL a session."""
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database on each supported backend."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.sqlite'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.create_database()

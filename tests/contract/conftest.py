"""Lets the tests of this folder import `contract_surface`, and says after a run how much of the contract is built."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from contract_surface import NOT_BUILT, rules, table

    reference = {row["operationId"] for row in table("operations")}
    waiting = {name for name in reference if NOT_BUILT in rules()[name].contract.errors}
    built = len(reference - waiting)
    terminalreporter.write_line(f"contract: {built} of {len(reference)} operations of the reference answer in full")

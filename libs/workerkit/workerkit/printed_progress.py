"""Progress and metrics of a program that prints the documented lines and reports nothing itself.

Programs of the original platform bring their own monitors, which only print:

    Total iterations: 1000
    Timestamp 1700000000000, Iteration 10
    Iteration 10: tag train_loss, simple_value 0.5
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from workerkit.reporter import Reporter
from workerkit.spool import MAX_SERIES_LENGTH, METRICS_FILE

POLL_SECONDS = 1.0
MAX_POLL_BYTES = 4 * 1024 * 1024
# Of what is printed within a second the newest is enough for a curve.
MAX_STEPS, MAX_SERIES = 32, 64
_TOTAL = re.compile(rb"Total iterations: (\d{1,9})\b")
_ITERATION = re.compile(rb"Timestamp \d{1,15}, Iteration (\d{1,9})\b")
_VALUE = re.compile(rb"Iteration (\d{1,9}): tag ([\w./-]{1,%d}), simple_value (\S{1,40})" % MAX_SERIES_LENGTH)


class PrintedProgress:
    """While it is entered, a thread reads what is printed into `output` and reports it as the program's.

    It gives way to a program that reports by itself. Where `output` is no file, or outside a job, nothing happens.
    """

    def __init__(self, output: BinaryIO | None) -> None:
        self._output = output
        directory = os.environ.get("DLMESH_JOB_DIR")
        self._spool = Path(directory, METRICS_FILE) if directory else None
        self._spooled = self._spool_size()
        self._reporter: Reporter | None = None
        self._rest = b""
        self._total = self._iteration = 0
        self._values: dict[str, dict[int, float]] = defaultdict(dict)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="printed-progress", daemon=True)

    @classmethod
    def of_this_process(cls) -> PrintedProgress:
        """What this process and its children print from now on."""
        with contextlib.suppress(OSError):
            output = Path("/proc/self/fd/1").open("rb")  # noqa: SIM115 - read from until the process ends
            if stat.S_ISREG(os.fstat(output.fileno()).st_mode):
                output.seek(0, os.SEEK_END)
                return cls(output)
        return cls(None)

    def __enter__(self) -> PrintedProgress:
        if self._output is not None and self._spool is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._thread.is_alive():
            return
        self._ending.set()
        self._thread.join()

    def _follow(self) -> None:
        is_last = False
        # Reported is what was read a look before: by now a program that reports by itself has done so, too.
        while not is_last and self._report():
            is_last = self._ending.wait(POLL_SECONDS)
            self._read()
        if is_last:
            self._report()
        if self._reporter is not None:
            self._reporter.close()

    def _read(self) -> None:
        assert self._output is not None
        lines = (self._rest + self._output.read(MAX_POLL_BYTES)).split(b"\n")
        self._rest = lines.pop()[-1024:]
        for line in lines:
            if found := _VALUE.search(line):
                with contextlib.suppress(ValueError):
                    self._note(int(found[1]), found[2].decode(), float(found[3]))
            elif found := _ITERATION.search(line):
                self._iteration = int(found[1])
            elif found := _TOTAL.search(line):
                self._total = int(found[1])

    def _note(self, step: int, name: str, value: float) -> None:
        self._iteration = step
        if name in self._values or len(self._values) < MAX_SERIES:
            steps = self._values[name]
            steps[step] = value
            if len(steps) > MAX_STEPS:
                del steps[next(iter(steps))]

    def _report(self) -> bool:
        """False when the program reports by itself."""
        if self._spool_size() != self._spooled:
            return False
        if not self._values and not self._iteration:
            return True
        if self._reporter is None:
            self._reporter = Reporter.from_environment()
        by_step: dict[int, dict[str, float]] = defaultdict(dict)
        for name, steps in self._values.items():
            for step, value in steps.items():
                by_step[step][name] = value
        for step in sorted(by_step):
            self._reporter.metrics(by_step[step], step)
        if self._total:
            self._reporter.progress(min(self._iteration, self._total), self._total, "training")
        self._spooled = self._spool_size()
        self._values.clear()
        self._iteration = 0
        return True

    def _spool_size(self) -> int:
        try:
            return self._spool.stat().st_size if self._spool else 0
        except OSError:
            return 0

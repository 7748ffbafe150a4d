"""`python plugin_host.py`: runs one algorithm that a user installed, for one study.

Standard library only, one file, and nothing newer than Python 3.6: it runs in the interpreter that the user named, in
the folder of its study, where `plugin_guard.py` put it. Reads lines of JSON and answers each with one:

    {"do": "hello"} -> {}
    {"do": "make", "name", "folder", "hyper_parameters", "parameters", "log_level"} -> {}
    {"do": "restore", "state": path} -> {"restored": bool}
    {"do": "search", "count", "results", "seconds", "state": path or null} -> {"values": [...], "saved": bool}

Any of them may be answered with {"error": text, "where": "optimizer.py, line 3, in search"}.
"""

import faulthandler
import json
import logging
import numbers
import os
import pickle
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any, BinaryIO

MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_STATE_BYTES = 64 * 1024 * 1024


class BasePluginOptimizer:
    """What an algorithm is derived from."""

    def __init__(self, name: str, hyper_parameters: Any, **kwargs: str) -> None:
        self.name = name
        self.hyper_parameters = hyper_parameters
        self.kwargs = kwargs

    def search(self, number_samples: int, last_exp_results: Any) -> Any:
        """The next `number_samples` sets of parameters, [{name: value}]; fewer or none when there are no more."""
        raise NotImplementedError("search")

    def get_state(self) -> Any:
        """What `set_state` of another object needs to go on from here."""
        return {}

    def set_state(self, state_dict: Any) -> None:
        """Go on from that."""


def offer_modules(log_level: str) -> None:
    """`plugins.core.logger` and `plugins.core.base_plugin_opt`, without files."""
    modules: Any = {}
    for name in ("plugins", "plugins.core", "plugins.core.logger", "plugins.core.base_plugin_opt"):
        modules[name] = sys.modules[name] = types.ModuleType(name)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, modules[name])
    for name in ("plugins", "plugins.core"):
        modules[name].__path__ = []
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logger = logging.getLogger("plugins")
    logger.setLevel(log_level)
    modules["plugins.core.logger"].logger = logger
    modules["plugins.core.base_plugin_opt"].BasePluginOptimizer = BasePluginOptimizer


class Host:
    """Answers what is asked about one algorithm."""

    def __init__(self) -> None:
        self.folder = ""
        self.make: Any = None
        self.optimizer: Any = None

    def do(self, message: Any) -> Any:
        return getattr(self, "do_" + message.pop("do"))(**message)

    def do_hello(self) -> Any:
        return {}

    def do_make(self, name: str, folder: str, hyper_parameters: Any, parameters: Any, log_level: str) -> Any:
        # A file that is too large is an error then, not a death.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.folder = folder
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        offer_modules(log_level)
        import optimizer  # type: ignore[import-not-found]

        if not hasattr(optimizer, "PluginOptimizer"):
            raise AttributeError("optimizer.py has no class PluginOptimizer")
        # A copy each time: an algorithm may change what it is given.
        given = json.dumps([hyper_parameters, parameters])

        def make() -> Any:
            hyper_parameters, parameters = json.loads(given)
            return optimizer.PluginOptimizer(name, hyper_parameters, **parameters)

        self.make = make
        self.optimizer = make()
        return {}

    def do_restore(self, state: str) -> Any:
        if not self.has_state():
            return {"restored": False}
        try:
            self.optimizer.set_state(pickle.loads(Path(state).read_bytes()))
        except Exception:
            traceback.print_exc()
            self.optimizer = self.make()
            return {"restored": False}
        return {"restored": True}

    def do_search(self, count: int, results: Any, seconds: float, state: Any) -> Any:
        # Where it was when it took too long.
        faulthandler.dump_traceback_later(seconds)
        try:
            values = values_of(self.optimizer.search(count, results))
        finally:
            faulthandler.cancel_dump_traceback_later()
        return {"values": values, "saved": bool(state) and self.has_state() and self.save(state)}

    def has_state(self) -> bool:
        kind = type(self.optimizer)
        return all(
            getattr(kind, name, None) not in (None, getattr(BasePluginOptimizer, name))
            for name in ("get_state", "set_state")
        )

    def save(self, path: str) -> bool:
        """True when its state is on disk, whole."""
        draft = Path(path + ".draft")
        try:
            content = pickle.dumps(self.optimizer.get_state(), protocol=4)
            if len(content) > MAX_STATE_BYTES:
                raise ValueError(f"its state is larger than {MAX_STATE_BYTES} bytes")
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except Exception:
            # It is played back then.
            traceback.print_exc()
            return False
        return True


def values_of(found: Any) -> Any:
    """What `search` returned as JSON can hold it; TypeError when it is something else."""
    if found is None:
        return []
    if not isinstance(found, (list, tuple)):
        raise TypeError(f"search() returned {type(found).__name__}, not a list of {{parameter: value}}")
    values = []
    for index, one in enumerate(found):
        if not isinstance(one, dict):
            raise TypeError(f"search() returned a list whose item {index} is no dict but {type(one).__name__}")
        values.append({str(name): plain(name, value) for name, value in one.items()})
    return values


def plain(name: Any, value: Any) -> Any:
    """A number or text; those of libraries, too."""
    if hasattr(value, "item") and not isinstance(value, (str, numbers.Number)):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"search() returned {type(value).__name__} for {name}, not a number or a text")


def place_of(error: BaseException, folder: str) -> str:
    """The last line of the algorithm's own files that an error came through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if folder and frame.filename.startswith(folder):
            return f"{os.path.relpath(frame.filename, folder)}, line {frame.lineno}, in {frame.name}"
    return ""


def text_of(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "MemoryError: it needs more memory than it may have"
    return f"{type(error).__name__}: {error}"[:1000]


def serve(asks: BinaryIO, answers: BinaryIO) -> None:
    host = Host()
    for line in asks:
        try:
            answer = json.dumps(host.do(json.loads(line.decode())))
            if len(answer) > MAX_ANSWER_BYTES:
                raise ValueError(f"search() returned more than {MAX_ANSWER_BYTES} characters")
        except BaseException as error:
            traceback.print_exc()
            answer = json.dumps({"error": text_of(error), "where": place_of(error, host.folder)})
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        answers.write(answer.encode() + b"\n")
        answers.flush()


def main() -> None:
    asks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdin = os.fdopen(0)
    # Line by line: what it said last counts when it does not come to its end.
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="backslashreplace")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    serve(asks, answers)
    # Whatever threads it started.
    os._exit(0)


if __name__ == "__main__":
    main()

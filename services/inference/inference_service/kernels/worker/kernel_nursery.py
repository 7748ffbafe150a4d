"""`python kernel_nursery.py SOCKET CONFINEMENT [MODULE ...]`: forks guards of kernels, which have MODULEs imported.

SOCKET is the number of an inherited socket, CONFINEMENT the folder of that package's modules. It says `ready` when
everything is imported; each message on it then brings the three descriptors of a guard (see `kernel_guard`). It ends
when the socket is closed; guards do not.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
import weakref
from pathlib import Path

DESCRIPTORS = 3


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(requests.fileno(), False)
    sys.path[:0] = [str(Path(__file__).parent), sys.argv[2]]
    import kernel_guard  # type: ignore[import-not-found]

    modules = ("accounts", "descendants", "hiding", "memory", "sizes")
    confinement = {name: importlib.import_module(name) for name in modules}
    del sys.path[:2]
    # Modules of a kernel may have these names, and in a fork of this process it would be given ours.
    for name in ("kernel_guard", "kernel_host", *modules):
        del sys.modules[name]
    for module in sys.argv[3:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    # What libraries want done at the end of this process is not for each fork of it.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    # Objects that live now are never collected, so their pages stay shared with what is forked.
    gc.collect()
    gc.freeze()
    # Nobody waits for guards.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests.sendall(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 16, DESCRIPTORS)
        if not message:
            return
        if len(descriptors) == DESCRIPTORS and os.fork() == 0:
            try:
                requests.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                kernel_guard.guard(*descriptors, confinement)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()

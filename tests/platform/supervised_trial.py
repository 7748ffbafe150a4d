"""Runs a Supervisor over stand-in children: `python supervised_trial.py HOME PORT`; one starts an own-session job."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from dlmesh_platform.supervisor import Child, Supervisor, describe, exclusive

HEALTH = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["DLMESH_HTTP_PORT"])), Handler).serve_forever()
"""
SERVICE = """
import pathlib, subprocess, sys, time
job = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
pid = subprocess.Popen([sys.executable, "-c", job], start_new_session=True).pid
pathlib.Path("job.pid").write_text(str(pid))
time.sleep(600)
"""


def main() -> None:
    """Prints `ready` once healthy."""
    home = Path(sys.argv[1])
    platform = describe(home, {**os.environ, "DLMESH_HTTP_PORT": sys.argv[2]})
    children = [Child("envoy", [sys.executable, "-c", HEALTH]), Child("datasets", [sys.executable, "-c", SERVICE])]
    with exclusive(home):
        Supervisor(replace(platform, children=children)).run(lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()

"""What runs inside a job: report progress, metrics and the result, and learn that a stop was asked for.

Facts are spooled to the job's directory first and pushed by a daemon thread, so a program never waits for the platform
and never fails because of it; what was not pushed is read from the spool when the job ends.
"""

from workerkit.heartbeat import heartbeat
from workerkit.printed_progress import PrintedProgress
from workerkit.reporter import Reporter
from workerkit.stopping import stop_requested, watch_for_stop

__all__ = ["PrintedProgress", "Reporter", "heartbeat", "stop_requested", "watch_for_stop"]

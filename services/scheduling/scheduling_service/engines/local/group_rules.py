"""What an instance group of the engine local may be."""

from __future__ import annotations

import os
import pwd

from servicekit.errors import invalid

from scheduling_service.domain.instance_group import InstanceGroup


def check(group: InstanceGroup) -> None:
    """400 naming the field: one host, no master, no options, and ranks run as an account of this machine."""
    if group.hosts != 1:
        raise invalid("hosts", group.hosts, "1: the engine local is this machine")
    if group.master_url not in {"", "local"}:
        raise invalid("masterUrl", group.master_url, "nothing: the engine local has no master")
    if group.history_server_url:
        raise invalid("historyServerUrl", group.history_server_url, "nothing: the engine local has none")
    if group.engine_options:
        raise invalid("engineOptions", next(iter(group.engine_options)), "none: the engine local has none")
    if group.execution_user:
        _check_user(group.execution_user)


def _check_user(name: str) -> None:
    try:
        account = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise invalid("executionUser", name, "an account of this machine") from None
    if os.geteuid() != 0 and account.pw_uid != os.geteuid():
        raise invalid("executionUser", name, "the platform's own user: only root could run ranks as somebody else")

"""What an instance group and a user's share may be, whatever the engine."""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection
from urllib.parse import urlsplit

from servicekit.errors import invalid
from servicekit.names import check_name

from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.domain.policies.registry import POLICIES

# Far beyond any cluster.
MAX_HOSTS = 100_000
MAX_PER_HOST = 10_000
# Of all hosts: the plan keeps an entry for each GPU.
MAX_SLOTS, MAX_GPUS = 1_000_000, 100_000
MAX_USER_SLOTS = MAX_HOSTS * MAX_PER_HOST
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
MAX_URL_CHARACTERS = 2000
MAX_OPTIONS, MAX_OPTION_CHARACTERS = 200, 4000


def check_group(group: InstanceGroup, engines: Collection[str]) -> None:
    """400 naming the field, in its REST spelling, and what it may hold."""
    check_name("name", group.name)
    if _is_id(group.name):
        raise invalid("name", group.name, "a name that is no id: groups are called by either")
    for field, value, known in (("engine", group.engine, engines), ("policy", group.policy, POLICIES)):
        if value not in known:
            raise invalid(field, value, known)
    for field, count, least, most in (
        ("hosts", group.hosts, 1, MAX_HOSTS),
        ("slotsPerHost", group.slots_per_host, 1, MAX_PER_HOST),
        ("gpusPerHost", group.gpus_per_host, 0, MAX_PER_HOST),
        ("maxSlotsPerUser", group.max_slots_per_user, 0, MAX_USER_SLOTS),
    ):
        if not least <= count <= most:
            raise invalid(field, count, f"{least} to {most}")
    for field, count, most, what in (
        ("slotsPerHost", group.slots, MAX_SLOTS, "slots"),
        ("gpusPerHost", group.gpus, MAX_GPUS, "GPUs"),
    ):
        if count > most:
            raise invalid(
                field, count // group.hosts, f"at most {most} {what} on all hosts together, {count} were asked"
            )
    for field, url in (("masterUrl", group.master_url), ("historyServerUrl", group.history_server_url)):
        if len(url) > MAX_URL_CHARACTERS or any(not character.isprintable() or character == " " for character in url):
            raise invalid(field, url, f"a URL of at most {MAX_URL_CHARACTERS} characters, without blanks")
    if group.history_server_url and not _is_web_page(group.history_server_url):
        raise invalid("historyServerUrl", group.history_server_url, "nothing, or http://host[:port] or https://...")
    if group.execution_user:
        check_name("executionUser", group.execution_user)
    _check_options(group)


def check_share(share: UserShare) -> None:
    """400 naming the field."""
    check_name("user", share.user)
    if not (math.isfinite(share.weight) and MIN_WEIGHT <= share.weight <= MAX_WEIGHT):
        raise invalid("weight", share.weight, f"{MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
    if not 0 <= share.max_slots <= MAX_USER_SLOTS:
        raise invalid("maxSlots", share.max_slots, f"0 to {MAX_USER_SLOTS}")


def _is_id(name: str) -> bool:
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True


def _is_web_page(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_options(group: InstanceGroup) -> None:
    if len(group.engine_options) > MAX_OPTIONS:
        raise invalid("engineOptions", len(group.engine_options), f"at most {MAX_OPTIONS} options")
    for name, value in group.engine_options.items():
        if not name or len(name) + len(value) > MAX_OPTION_CHARACTERS or not (name + value).isprintable():
            allowed = f"a name and a value of at most {MAX_OPTION_CHARACTERS} printable characters together"
            raise invalid("engineOptions", name, allowed)

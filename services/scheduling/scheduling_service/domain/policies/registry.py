"""Policies by name. Adding one is a file and a line here."""

from __future__ import annotations

import importlib
from types import MappingProxyType

from servicekit.errors import invalid

from scheduling_service.domain.policies.base import Policy

POLICIES = MappingProxyType(
    {
        "fairshare": "scheduling_service.domain.policies.fairshare:FairShare",
        "fifo": "scheduling_service.domain.policies.fifo:Fifo",
        "priority": "scheduling_service.domain.policies.priority:Priority",
    }
)


def make_policy(name: str) -> Policy:
    """The policy called `name`; 400 listing the known ones otherwise."""
    if name not in POLICIES:
        raise invalid("policy", name, POLICIES)
    module, class_name = POLICIES[name].split(":")
    policy: Policy = getattr(importlib.import_module(module), class_name)()
    return policy

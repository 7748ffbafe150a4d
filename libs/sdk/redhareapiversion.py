"""Which version of `redhareapi` a kernel finds; kernels import this module before that one."""

from __future__ import annotations

__version__ = version = "1"

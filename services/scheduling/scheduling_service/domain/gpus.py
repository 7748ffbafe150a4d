"""Which GPUs the ranks of a gang take: whole ones, or a share of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WHOLE = 100

# The devices of each rank.
Placement = Sequence[Sequence[int]]


def free_shares(gpus: int, taken: Iterable[tuple[Placement, int]]) -> list[int]:
    """Per cent of each of `gpus` devices that is free beside gangs with these devices and this share of each."""
    free = [WHOLE] * gpus
    for placement, share in taken:
        for devices in placement:
            for device in devices:
                if device < gpus:
                    free[device] -= share
    return free


def allocate(free: list[int], ranks: int, devices_per_rank: int, share: int) -> list[list[int]]:
    """Devices for as many of `ranks` as fit, each with `share` per cent of `devices_per_rank`; takes them from `free`.

    A share goes where the least is left, so that whole devices stay free for those that need whole ones.
    """
    placement: list[list[int]] = []
    while len(placement) < ranks:
        fitting = sorted((left, device) for device, left in enumerate(free) if left >= share)
        devices = sorted(device for _, device in fitting[:devices_per_rank])
        if len(devices) < devices_per_rank:
            break
        for device in devices:
            free[device] -= share
        placement.append(devices)
    return placement

"""Which GPUs the ranks of a gang take: whole ones of one host, or a share of one."""

from __future__ import annotations

from collections.abc import Sequence

WHOLE = 100

# The devices of each rank, numbered through all hosts.
Placement = Sequence[Sequence[int]]


def most_ranks(hosts: int, per_host: int, per_rank: int, share: int = WHOLE) -> int | None:
    """How many such ranks all devices take when nobody has any; None when they need none."""
    if not per_rank:
        return None
    return hosts * (per_host // per_rank if share == WHOLE else per_host * (WHOLE // share))


class Gpus:
    """The devices of a group's hosts and how much of each, in per cent, is free.

    A share goes where the least is left, and whole devices to the host with the fewest that do: so whole devices and
    whole hosts stay free for those that need them.
    """

    def __init__(self, hosts: int, per_host: int) -> None:
        self._per_host = per_host
        self._free = [WHOLE] * (hosts * per_host)
        # Hosts by how many of their devices are wholly free; the dictionaries are sets that keep their order.
        self._hosts: list[dict[int, None]] = [{} for _ in range(per_host + 1)]
        self._hosts[per_host] = dict.fromkeys(range(hosts))
        self._wholes = [per_host] * hosts
        # Devices of which a part is taken.
        self._shared: dict[int, None] = {}

    @property
    def free(self) -> Sequence[int]:
        """Per cent of each device."""
        return self._free

    def take(self, placement: Placement, share: int) -> None:
        """Take `share` per cent of each device of each rank. Devices that a smaller group lost are passed over."""
        self._change(placement, -share)

    def give(self, placement: Placement, share: int) -> None:
        """Give back what was taken."""
        self._change(placement, share)

    def place(self, ranks: int, per_rank: int, share: int = WHOLE) -> list[list[int]]:
        """Devices for as many of `ranks` as fit, taken."""
        placement: list[list[int]] = []
        while len(placement) < ranks:
            devices = self._share(share) if share < WHOLE and per_rank else self._wholes_of_a_host(per_rank)
            if devices is None:
                break
            placement.append(devices)
            self.take([devices], share)
        return placement

    def fitting(self, ranks: int, per_rank: int, share: int = WHOLE) -> int:
        """How many of `ranks` fit now."""
        if not per_rank:
            return ranks
        if share == WHOLE:
            found = sum(len(hosts) * (wholes // per_rank) for wholes, hosts in enumerate(self._hosts))
        else:
            found = sum(len(hosts) * wholes for wholes, hosts in enumerate(self._hosts)) * (WHOLE // share)
            found += sum(self._free[device] // share for device in self._shared)
        return min(ranks, found)

    def _share(self, share: int) -> list[int] | None:
        least = min(
            ((self._free[device], device) for device in self._shared if self._free[device] >= share), default=None
        )
        return [least[1]] if least is not None else self._wholes_of_a_host(1)

    def _wholes_of_a_host(self, number: int) -> list[int] | None:
        if not number:
            return []
        for hosts in self._hosts[number:]:
            for host in hosts:
                devices = range(host * self._per_host, (host + 1) * self._per_host)
                return [device for device in devices if self._free[device] == WHOLE][:number]
        return None

    def _change(self, placement: Placement, by: int) -> None:
        for devices in placement:
            for device in devices:
                if device >= len(self._free):
                    continue
                before, now = self._free[device], self._free[device] + by
                self._free[device] = now
                if (now == WHOLE) != (before == WHOLE):
                    self._count(device // self._per_host, 1 if now == WHOLE else -1)
                if 0 < now < WHOLE:
                    self._shared[device] = None
                else:
                    self._shared.pop(device, None)

    def _count(self, host: int, by: int) -> None:
        del self._hosts[self._wholes[host]][host]
        self._wholes[host] += by
        self._hosts[self._wholes[host]][host] = None

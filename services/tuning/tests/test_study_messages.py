"""What a study says while its algorithm takes long."""

from __future__ import annotations

import asyncio
from typing import Any

from studies_room import StudiesRoom, request_of
from tuning_service.usecases.run_studies import RunStudies


async def test_it_says_what_its_algorithm_is_at(room: StudiesRoom) -> None:
    loop: RunStudies = room.loop
    uid = await room.add(request=request_of(maxJobNum=9))
    answering, ask = asyncio.Event(), room.suggestions.ask

    async def slow(*arguments: Any) -> Any:
        await answering.wait()
        return await ask(*arguments)

    room.suggestions.ask = slow  # type: ignore[method-assign]
    room.suggestions.says = "its algorithm is being brought up to date: search 3 of 8 again"
    await room.steps()
    assert (await room.study(uid)).status_message == room.suggestions.says
    room.suggestions.says = ""
    answering.set()
    await asyncio.wait({task for _, task in loop._asks.values()})
    await room.until_running(uid, 1)
    await room.steps()
    assert (await room.study(uid)).status_message == ""

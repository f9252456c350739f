"""The meeting of a search's first workers."""

from __future__ import annotations

import asyncio

from raprune.orchestration.workers.meeting import Meeting


def test_workers_that_meet_are_answered_when_the_last_one_has_come() -> None:
    async def meet() -> list[bool]:
        meeting = Meeting()
        first = [asyncio.create_task(meeting.wait(f"worker {number}", 100, 60.0)) for number in range(99)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in first)
        last = await meeting.wait("worker 99", 100, 60.0)
        return [last, *await asyncio.gather(*first)]

    assert asyncio.run(meet()) == [True] * 100


def test_worker_that_comes_twice_counts_once_and_waits_no_longer_than_its_patience() -> None:
    async def meet() -> list[bool]:
        meeting = Meeting()
        meeting.come("a")
        return [await meeting.wait("a", 2, 0.01), await meeting.wait("b", 2, 0.01)]

    assert asyncio.run(meet()) == [False, True]

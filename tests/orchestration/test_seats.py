"""Seats of the workers of a search."""

from __future__ import annotations

from raprune.orchestration.seats import Seat, Seats


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def seat(worker: str, node: str = "a") -> Seat:
    return Seat(worker=worker, node=node, host=f"host-{node}", actor=f"actor of {worker}".encode())


def test_silence_of_a_worker_begins_anew_with_each_sign_of_progress() -> None:
    clock = Clock()
    seats = Seats(clock)
    seats.take(seat("w"), "trial", is_up=True)
    clock.now_s = 5.0
    assert [one.silent_s for one in seats.all()] == [5.0]
    seats.hear("trial")
    seats.hear("no such trial")
    clock.now_s = 7.0
    assert [one.silent_s for one in seats.all()] == [2.0]


def test_worker_that_comes_up_is_not_silent() -> None:
    clock = Clock()
    seats = Seats(clock)
    seats.take(seat("w"), "trial", is_up=False)
    seats.hear("trial")
    clock.now_s = 5.0
    assert [one.silent_s for one in seats.all()] == [None]


def test_worker_with_another_task_has_left_the_one_before() -> None:
    seats = Seats(Clock())
    seats.take(seat("w"), "first", is_up=True)
    seats.take(seat("w"), "second", is_up=True)
    assert [one.trial_id for one in seats.all()] == ["second"] and seats.last("first") is None


def test_last_seat_of_a_trial_that_is_tried_again_is_the_second_one() -> None:
    seats = Seats(Clock())
    seats.take(seat("w", "a"), "trial", is_up=True)
    seats.fault("w", "AcceleratorError: lost")
    first = seats.last("trial")
    assert first is not None and (first.node, first.fault) == ("a", "AcceleratorError: lost")
    seats.take(seat("v", "b"), "trial", is_up=True)
    second = seats.last("trial")
    assert second is not None and (second.node, second.fault) == ("b", None)
    seats.take(seat("w", "a"), "other", is_up=True)
    assert seats.last("trial") == second, "the first worker no longer has it"
    assert seats.actor("v") == b"actor of v" and seats.actor("nobody") is None


def test_wait_for_a_filesystem_is_not_silence() -> None:
    clock = Clock()
    seats = Seats(clock)
    seats.take(seat("w"), "first", is_up=True)
    seats.take(seat("v"), "second", is_up=True)
    clock.now_s = 5.0
    seats.wait("w", waits=True)
    assert [one.silent_s for one in seats.all()] == [None, 5.0]
    clock.now_s = 300.0
    seats.wait("w", waits=False)
    clock.now_s = 301.0
    assert [one.silent_s for one in seats.all()] == [1.0, 301.0]
    seats.wait(None, waits=True)
    assert [one.silent_s for one in seats.all()] == [None, None]
    clock.now_s = 400.0
    seats.wait(None, waits=False)
    seats.wait("no such worker", waits=True)
    assert [one.silent_s for one in seats.all()] == [0.0, 0.0]

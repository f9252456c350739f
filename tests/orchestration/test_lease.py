from __future__ import annotations

from raprune.orchestration.lease import BEAT_S, LEASE_S, ORPHANED_S, Lease


def test_a_run_is_granted_once_and_again_after_silence() -> None:
    lease = Lease(heard_at=0.0)
    assert lease.take("one", 1.0) is None
    assert lease.take("two", 3.0) == 2.0
    assert lease.take("one", 4.0) is None, "its holder keeps it"
    assert lease.take("two", 4.0 + LEASE_S - 0.1) is not None, "asking does not wear it down"
    assert lease.take("two", 4.0 + LEASE_S) is None
    assert lease.take("one", 5.0 + LEASE_S) == 1.0, "who was silent too long has lost it"


def test_an_orphan_is_a_run_that_nobody_asks_for() -> None:
    lease = Lease(heard_at=0.0)
    assert not lease.is_orphaned(ORPHANED_S, ORPHANED_S)
    assert lease.is_orphaned(ORPHANED_S + 1, ORPHANED_S)
    lease.take("one", ORPHANED_S)
    assert not lease.is_orphaned(2 * ORPHANED_S, ORPHANED_S)


def test_several_beats_may_get_lost() -> None:
    assert 5 * BEAT_S < LEASE_S < ORPHANED_S

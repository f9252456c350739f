"""Attempts at the tasks of a search."""

from __future__ import annotations

from collections.abc import Sequence

from raprune.orchestration.attempts import Attempts
from raprune.orchestration.cluster.failures import LOSSES_OF_A_NODE, RETRIES_AFTER_LOSS, Action
from raprune.orchestration.cluster.time_limit import FIRST_S, TimeLimit
from raprune.orchestration.seats import Seated


class Cluster:
    """Nodes, and the one that each trial runs on."""

    def __init__(self, nodes: Sequence[str] = ("a", "b"), *, fault: str | None = None) -> None:
        self.nodes = nodes
        self.fault = fault
        self.at: dict[str, str] = {}
        self.said: list[str] = []
        self.attempts = Attempts(
            TimeLimit(None, 1.0), seat_of=self.seat, nodes=lambda: self.nodes, say=self.said.append
        )

    def seat(self, trial_id: str) -> Seated | None:
        node = self.at.get(trial_id)
        return None if node is None else seated(trial_id, node=node, fault=self.fault)

    def lose(self, trial_id: str, node: str) -> Action:
        self.at[trial_id] = node
        return self.attempts.lost(trial_id).action


def seated(trial_id: str, *, node: str = "a", silent_s: float | None = 0.0, fault: str | None = None) -> Seated:
    worker = f"worker of {trial_id}"
    return Seated(trial_id=trial_id, worker=worker, node=node, host=f"host-{node}", silent_s=silent_s, fault=fault)


def test_node_that_loses_three_trials_is_left_out_and_the_user_told() -> None:
    cluster = Cluster(fault="AcceleratorError: an ECC error")
    for number in range(LOSSES_OF_A_NODE):
        assert cluster.attempts.left_out == set()
        assert cluster.lose(f"trial-{number}", "a") is Action.RETRY
    assert cluster.attempts.left_out == {"a"}
    assert (
        cluster.said
        == cluster.attempts.told
        == [
            "Node host-a is given no further workers: 3 trials lost theirs there, the last one with "
            "AcceleratorError: an ECC error."
        ]
    )


def test_losses_of_one_trial_count_once_for_a_node() -> None:
    cluster = Cluster()
    cluster.lose("other", "b")
    for _ in range(RETRIES_AFTER_LOSS):
        cluster.lose("trial", "a")
    cluster.lose("another", "a")
    assert cluster.attempts.left_out == set()


def test_trial_that_is_lost_everywhere_is_recorded_and_no_node_blamed() -> None:
    cluster = Cluster(fault="killed")
    actions = [cluster.lose("trial", node) for node in ("a", "b", "a")]
    assert actions == [Action.RETRY, Action.RETRY, Action.RECORD]
    for number in range(LOSSES_OF_A_NODE - 1):
        cluster.lose(f"other-{number}", "a")
    assert cluster.attempts.left_out == set()


def test_reason_of_a_lost_trial_tells_why_its_worker_ended() -> None:
    cluster = Cluster(fault="AcceleratorError: device lost")
    cluster.at["trial"] = "a"
    reasons = [cluster.attempts.lost("trial").reason for _ in range(RETRIES_AFTER_LOSS + 1)]
    assert reasons[-1] == "the worker was lost on each of 3 attempts, the last time with AcceleratorError: device lost"


def test_last_node_of_a_cluster_is_never_left_out() -> None:
    cluster = Cluster(nodes=("a",))
    for number in range(3 * LOSSES_OF_A_NODE):
        cluster.lose(f"trial-{number}", "a")
    assert cluster.attempts.left_out == set()
    both = Cluster()
    for number in range(LOSSES_OF_A_NODE):
        both.lose(f"a-{number}", "a")
        both.lose(f"b-{number}", "b")
    assert len(both.attempts.left_out) == 1


def test_trial_without_progress_is_ended_and_recorded_with_the_field_that_says_so() -> None:
    attempts = Cluster().attempts
    seats = [
        seated("slow", silent_s=FIRST_S + 1),
        seated("fast", silent_s=1.0),
        seated("trains", silent_s=FIRST_S + 1),
        seated("comes-up", silent_s=None),
        seated("ended-before", silent_s=2 * FIRST_S),
    ]
    running = [("slow", False), ("fast", False), ("trains", True), ("comes-up", False)]
    assert attempts.overdue(seats, running) == ["worker of slow"]
    decision = attempts.lost("slow")
    assert decision.action is Action.RECORD and "over resources.trial_timeout_s" in decision.reason
    assert attempts.lost("fast").action is Action.RETRY


def test_trial_that_ends_just_before_its_worker_is_ended_is_no_failure() -> None:
    attempts = Cluster().attempts
    assert attempts.overdue([seated("late", silent_s=2 * FIRST_S)], [("late", False)])
    attempts.finished("late")
    assert attempts.lost("late").action is Action.RETRY

"""Scores of a method on the GPU against those of the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acceptance.bench import Arrays
from raprune.channels.graph import ChannelGraph
from raprune.methods import Kept, Scores

SCORES, SAME, ACCURACY = 1e-2, 0.97, 0.01
"""Largest difference of scores as a fraction of the largest of their group, least fraction of equal decisions on
channels, and largest difference of accuracies."""


@dataclass(frozen=True)
class Parity:
    """Agreement of two devices on one method."""

    scores: float
    """Largest difference of a score, as a fraction of the largest score of its group."""
    same: float
    """Fraction of the channels that both keep or both remove."""
    accuracy: float
    """Difference of the accuracies after repair."""

    @property
    def holds(self) -> bool:
        """True if all three are within their bounds; NaN is not."""
        return self.scores < SCORES and self.same > SAME and self.accuracy < ACCURACY


def described(name: str, scores: Scores, kept: Kept, accuracy: float, graph: ChannelGraph) -> Arrays:
    """Return the arrays of one method: its scores by group, which channels stay, and the accuracy after repair."""
    largest = {group: float(np.abs(values).max()) or 1.0 for group, values in scores.items()}
    flat = [np.asarray(scores[group.name]) / largest[group.name] for group in graph.groups]
    stays = [np.isin(np.arange(group.num_channels), kept[group.name]) for group in graph.groups]
    return {
        f"{name}/scores": np.concatenate(flat).astype(np.float32),
        f"{name}/kept": np.concatenate(stays),
        f"{name}/accuracy": np.array(accuracy),
    }


def compared(name: str, reference: Arrays, new: Arrays) -> Parity | None:
    """Compare one method; None if the reference does not have it.

    Raises:
        SystemExit: if the reference is of another network.
    """
    if f"{name}/scores" not in reference:
        return None
    was, now = (np.asarray(arrays[f"{name}/scores"], dtype=np.float64) for arrays in (reference, new))
    if was.shape != now.shape:
        raise SystemExit(
            f"--compare: the reference has {was.size} scores of {name}, this run {now.size}; make it anew."
        )
    return Parity(
        scores=_largest(was - now),
        same=float((reference[f"{name}/kept"] == new[f"{name}/kept"]).mean()),
        accuracy=abs(float(reference[f"{name}/accuracy"]) - float(new[f"{name}/accuracy"])),
    )


def _largest(difference: npt.NDArray[np.float64]) -> float:
    return float(np.abs(difference).max()) if np.isfinite(difference).all() else float("nan")

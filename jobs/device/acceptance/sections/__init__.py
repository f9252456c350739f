"""The sections of the acceptance run, in the order of their worth."""

from __future__ import annotations

from acceptance.runner import Section
from acceptance.sections import (
    accuracy,
    candidates,
    environment,
    imagenet,
    latency,
    methods,
    proof,
    search,
    throughput,
    together,
    trained,
)

METHODS = Section(name="methods", seconds=40, run=methods.run)

SECTIONS = (
    Section(name="environment", seconds=15, run=environment.run),
    METHODS,
    Section(name="search", seconds=95, run=search.run),
    Section(name="throughput", seconds=45, run=throughput.run),
    Section(name="candidates", seconds=25, run=candidates.run),
    Section(name="imagenet", seconds=45, run=imagenet.run),
    Section(name="trained", seconds=20, run=trained.run),
    Section(name="proof", seconds=25, run=proof.run),
    Section(name="latency", seconds=55, run=latency.run),
    Section(name="together", seconds=25, run=together.run),
    Section(name="accuracy", seconds=75, run=accuracy.run, takes_the_rest=True),
)
"""All sections. The seconds are estimates for an H100; `accuracy` takes the time that is left."""

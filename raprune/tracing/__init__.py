"""Which channels must fall together: shadow tensors -> groups, and the proof that the groups are right."""

from raprune.tracing.cache import cached_trace
from raprune.tracing.graph import ChannelGraph, Factor, Frozen, Group, Member, Term
from raprune.tracing.proof import Proof, prove
from raprune.tracing.trace import architecture_hash, trace

__all__ = [
    "ChannelGraph",
    "Factor",
    "Frozen",
    "Group",
    "Member",
    "Proof",
    "Term",
    "architecture_hash",
    "cached_trace",
    "prove",
    "trace",
]

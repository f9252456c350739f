"""Which channels must fall together: shadow tensors -> groups. The proof is in `proof.py`, above surgery."""

from raprune.tracing.cache import cached_trace
from raprune.tracing.forward import architecture_hash, trace
from raprune.tracing.graph import ChannelGraph, Factor, Frozen, Group, Member, Term

__all__ = ["ChannelGraph", "Factor", "Frozen", "Group", "Member", "Term", "architecture_hash", "cached_trace", "trace"]

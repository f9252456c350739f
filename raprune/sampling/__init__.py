"""Sampling: what a search tries next, without Ray: proposals, mutation, halving, warm start, promotion, stopping.

Imports `results` and the rooms above it, and the interfaces of `cost` and `methods`. Open `proposals.py` first.
"""

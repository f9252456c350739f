"""Pruning: one candidate from widths to a trial, in one process without Ray; the artifact that holds its network.

Imports `training` and the rooms above it. Open `prune.py` first: it is the page to read first in this package.
"""

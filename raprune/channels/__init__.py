"""Channels: the groups of coupled channels, the proof of these groups, and the cut that removes channels.

Imports `models` and the rooms above it. Open `graph.py` first, then `trace.py`.
"""

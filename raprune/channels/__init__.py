"""Channels: which channels are coupled, the proof of it, and the cut that removes them.

Imports `models` and the rooms above it. Open `graph.py` first, then `trace.py`.
"""

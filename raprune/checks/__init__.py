"""Checks: a job, a network and a user's method are examined before any work starts.

Imports `sampling` and the rooms above it. Open `job.py` first.
"""

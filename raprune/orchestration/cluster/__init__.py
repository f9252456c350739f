"""Cluster: Ray is started or joined, its nodes are checked, and workers are placed on them.

Imports `spec` and `errors`. Open `connect.py` first.
"""

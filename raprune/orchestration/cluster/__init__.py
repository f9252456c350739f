"""Cluster: Ray is started or joined, its nodes are checked, and what runs where is decided.

Imports `spec` and `errors`; `connect.py` is to be opened first.
"""

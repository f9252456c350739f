"""Orchestration: the only room that imports Ray: the driver, the coordinator, the workers, jobs on a cluster.

Imports every room. Open `search.py` first, then `driver.py`.
"""

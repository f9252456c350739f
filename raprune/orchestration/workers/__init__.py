"""Workers: what runs in a task, an actor or a group of Ray Train: trials, trainings, scores, latency.

Imports every room above `orchestration`. Open `trials.py` first.
"""

"""Workers: the code of tasks, of actors and of groups of Ray Train: trials, trainings, scores, latency.

Imports every room above `orchestration`. Open `trials.py` first.
"""

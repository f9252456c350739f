"""Tasks: what a network is trained for and judged by. One file a task; open `task.py` first."""

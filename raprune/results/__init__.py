"""Results: the trials of a run become candidates, their Pareto front, the progress and the forecast. No torch.

Imports `store` and the rooms above it. Open `rows.py` first, then `front.py`, `progress.py`, `ablation.py`.
"""

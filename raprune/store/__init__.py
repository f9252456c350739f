"""Store: what a run keeps on disk, on any pyarrow filesystem: trials as Parquet, networks, scores, curves. No torch.

Imports `records` and the rooms above it. Open `folder.py` first.
"""

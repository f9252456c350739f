"""Training: the only training loop, with distillation, several processes, checkpoints and evaluation.

Imports `methods` and the rooms above it. Open `loop.py` first.
"""

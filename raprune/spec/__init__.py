"""Spec: what the user asks for, typed and checked once: `SearchSpec`, its budget, its fields in words. No torch.

Imports `errors`, `pareto` and `plugins` only. Open `job.py` first.
"""

"""Report: what a person sees of a run: the terminal, one HTML file, figures, and how numbers are written. No torch.

Imports `checks` and the rooms above it. Open `terminal.py` first.
"""

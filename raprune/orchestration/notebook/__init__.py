"""raprune from Python and from notebooks: objects of the session come in, a run that shows itself comes out.

Imports the other modules of `orchestration` and the rooms above it. Open `search.py` first; `run.py` is a run as a
session holds it.
"""

"""Page: the live page of a run in a browser, made from the run's store alone. No Ray.

Imports `report` and the rooms above it. Open `feed.py` first, then `answers.py` (pure) and `app.py` (HTTP).
"""

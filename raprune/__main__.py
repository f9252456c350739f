"""`python -m raprune`: the command where its script is not on the path, as in a job that Ray started."""

from __future__ import annotations

from raprune.cli import main

if __name__ == "__main__":
    main()

"""The job of a run, as a report repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raprune.spec.job import SearchSpec
from raprune.spec.toml import to_toml
from raprune.store.address import without_secrets


def job_of(spec: Mapping[str, Any]) -> str:
    """Return the fields of `spec` that differ from the defaults as TOML, without secrets in URIs."""
    asked = _differing(spec, SearchSpec().model_dump(mode="json"))
    asked |= {name: value for name, value in spec.items() if name.startswith("budget_") and value is not None}
    asked.pop("output", None)
    asked.pop("statistics", None)
    return to_toml(asked) if asked else ""


# A TOML edge: parts of a job, whichever version wrote it.
def _differing(spec: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in spec.items():
        known = defaults.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            found |= {name: part} if (part := _differing(value, known)) else {}
        elif value is not None and value != known:
            found[name] = without_secrets(value)
    return found

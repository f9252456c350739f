"""Addresses of runs and files without credentials, fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def public_address(place: str) -> str:
    """A URI without its user and query, which may hold credentials; a path unchanged."""
    return re.sub(r"(?<=://)[^/@]*@|\?.*$", "", place) if "://" in place else place


def without_secrets(value: Any) -> Any:
    """The value (a text, or mappings and lists of texts) without the credentials in its URIs."""
    if isinstance(value, str):
        if re.fullmatch(r"[\w+.-]+://\S*", value):
            return public_address(value)
        # In a sentence, a URI ends before these characters.
        text = re.sub(r"://[^/@\s]*@", "://", value)
        return re.sub(r"(://[^\s?]*)\?[^\s'\",;)]*", r"\1", text)
    if isinstance(value, Mapping):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value


def last_part(place: str) -> str:
    """Return the name of a path or a URI: its last part."""
    return public_address(place).rstrip("/").rpartition("/")[2]

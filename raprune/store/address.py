"""Addresses of runs and files as they may be shown: without what may be a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def public_address(place: str) -> str:
    """A URI without what may hold a secret: user and query; a path as it is."""
    return re.sub(r"(?<=://)[^/@]*@|\?.*$", "", place) if "://" in place else place


def without_secrets(value: Any) -> Any:
    """The value, a text or what holds texts, with all that may be a credential taken out of its URIs."""
    if isinstance(value, str):
        if re.fullmatch(r"[\w+.-]+://\S*", value):
            return public_address(value)
        # In a sentence a URI ends before these.
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

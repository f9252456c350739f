"""Every method does what the contract asks. A new one is held to it the moment it has its line in METHODS."""

from __future__ import annotations

import pytest

from raprune.checks.contract import checks_of
from raprune.methods import METHODS


@pytest.mark.parametrize(
    ("method", "check"), [(method, check) for method, kind in METHODS.items() for check in checks_of(kind)]
)
def test_contract(method: str, check: str) -> None:
    checks_of(METHODS[method])[check](METHODS[method])

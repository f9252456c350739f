"""Every method passes the contract; a new method is tested as soon as it has its line in METHODS."""

from __future__ import annotations

import pytest

from raprune.checks.contract import checks_of
from raprune.methods import METHODS


@pytest.mark.parametrize(
    ("method", "check"), [(method, check) for method, kind in METHODS.items() for check in checks_of(kind)]
)
def test_method_of_the_table_passes_the_contract(method: str, check: str) -> None:
    checks_of(METHODS[method])[check](METHODS[method])

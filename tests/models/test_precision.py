"""The half precision of a device, and the precision of forward passes."""

from __future__ import annotations

import pytest
import torch

from raprune.models.precision import Precision, forward_in, half_precision
from tests.pretend_cuda import pretend_cuda


@pytest.mark.parametrize(
    ("bfloat16", "capability", "wanted"),
    [(True, (9, 0), torch.bfloat16), (False, (7, 5), torch.float16), (False, (6, 1), None)],
    ids=["H100", "T4", "P40"],
)
def test_half_precision_of_a_card_is_one_that_it_has(
    bfloat16: bool, capability: tuple[int, int], wanted: torch.dtype | None
) -> None:
    with pretend_cuda(bfloat16=bfloat16, capability=capability):
        assert half_precision(torch.device("cuda:0")) is wanted
    assert half_precision(torch.device("cpu")) is None


@pytest.mark.parametrize(("precision", "rounding"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "tf32")])
def test_forward_pass_on_cuda_rounds_products_as_asked_and_the_switches_are_restored(
    precision: Precision, rounding: str
) -> None:
    def switches() -> tuple[str, str]:
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]

    before = switches()
    with pretend_cuda():
        product = torch.nn.Linear(2, 2).to("cuda:0")
        with forward_in(precision, torch.device("cuda:0")):
            assert switches() == (rounding, rounding)
            result = product(torch.ones(1, 2, device="cuda:0"))
    assert result.dtype is (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    assert switches() == before


def test_forward_pass_on_the_cpu_is_float32_for_tf32_and_bfloat16_if_asked() -> None:
    product, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with forward_in("tf32", x.device):
        assert product(x).dtype is torch.float32
    with forward_in("bfloat16", x.device):
        assert product(x).dtype is torch.bfloat16

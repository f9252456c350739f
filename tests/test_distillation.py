from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from raprune.distillation import logit_loss


def test_the_logits_loss_is_hintons() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 10), torch.randn(5, 10)
    soft, target = functional.softmax(student / 4, 1), functional.softmax(teacher / 4, 1)
    expected = 16 * (target * (target / soft).log()).sum(1).mean()
    assert logit_loss(student, teacher, 4.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert logit_loss(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-6)

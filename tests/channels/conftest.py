"""One thread: the networks of these tests are too small for more."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

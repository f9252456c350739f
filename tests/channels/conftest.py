"""One CPU thread for these tests, whose networks are too small for more threads."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

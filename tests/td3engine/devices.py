"""The devices that a test runs on: the CPU, and a GPU where there is one."""

import pytest
import torch

CPU = torch.device("cpu")
_needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=_needs_gpu)]

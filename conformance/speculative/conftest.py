"""Where there is a GPU, the plain tensors that these tests make lie on it too."""

import pytest
import torch

from twofold.conformance import target


@pytest.fixture(autouse=True, scope="module")
def on_the_device():
    if target.device() == "cpu":
        yield
    else:
        with torch.device(target.device()):
            yield

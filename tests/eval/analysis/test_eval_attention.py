"""The focus and the agreement of attention maps by hand."""

from __future__ import annotations

import pytest
import torch
from flexiclip_eval.analysis.attention import agreement, half_mass


def test_focus_and_agreement_of_maps_by_hand() -> None:
    assert half_mass(torch.full((4, 4), 1 / 16)) == 0.5
    assert half_mass(torch.tensor([[0.6, 0.2], [0.1, 0.1]])) == 0.25
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert agreement(left, left.repeat_interleave(3, 0).repeat_interleave(3, 1)) == pytest.approx(1)
    assert agreement(left, 1 - left) == pytest.approx(-1)
    assert agreement(left, torch.ones(3, 3)) == 0

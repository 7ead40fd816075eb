"""How far an encoder is from its model: the measurements by hand, and another length that is refused."""

from __future__ import annotations

import pytest
import torch

from flexiclip.export.agreement import EXACT, Disagreement, agreement, check, image_cases
from flexiclip.model_folder import LoadedModel


@torch.no_grad()
def test_agreement_and_its_measurements_by_hand(opened: dict[str, LoadedModel]) -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    b = torch.tensor([[6.0, 8.0], [1.0, 1.0]])
    found = agreement("pairs", a, b)
    assert found.difference == pytest.approx(0.5**0.5)
    assert found.cosine == pytest.approx(0.5**0.5)
    assert not agreement("nan", a, b * float("nan")).within(EXACT)
    cases, model = image_cases(opened["ours"], 3), opened["ours"].model
    check("itself", lambda x: model.encode_image(x, 3), cases, EXACT)
    with pytest.raises(Disagreement, match="another length is not the model"):
        check("another length", lambda x: model.encode_image(x, 4), cases, EXACT)

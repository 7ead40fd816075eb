"""The ways of resizing a fixed kernel that PI-resize is compared with, each against its own formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eval_tools import toy_model
from flexiclip_eval.embeddings.store import model_fingerprint
from flexiclip_eval.models.flex import FLEXES
from flexiclip_eval.models.protocol import ForeignModel
from flexiclip_eval.models.sources import open_model

from flexiclip.model_folder import save_model


def _area(kernel: np.ndarray, side: int) -> np.ndarray:
    bilinear = F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bilinear").numpy()
    return bilinear * kernel.shape[2] * kernel.shape[3] / side**2


def _norm(kernel: np.ndarray, side: int) -> np.ndarray:
    bilinear = F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bilinear").numpy()
    before, after = ([np.sqrt((each.astype(np.float64) ** 2).sum()) for each in filters] for filters in (kernel, bilinear))
    return np.stack([each * old / new for each, old, new in zip(bilinear, before, after, strict=True)])


FORMULAS = {
    "bilinear": lambda kernel, side: F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bilinear").numpy(),
    "bicubic": lambda kernel, side: F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bicubic").numpy(),
    "area": _area,
    "norm": _norm,
}


@pytest.fixture(scope="module")
def flexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ForeignModel]:
    """The toy model under every suffix: kernels of 8 pixels, images of 24."""
    folder = tmp_path_factory.mktemp("flexed")
    save_model(folder / "fixed", toy_model(folder))
    opened = {flex: open_model(f"{folder / 'fixed'}+{flex}", "cpu") for flex in FLEXES}
    assert all(isinstance(model, ForeignModel) for model in opened.values())
    return opened  # type: ignore[return-value]


@pytest.mark.parametrize("side", [4, 12, 24])
@pytest.mark.parametrize("flex", FORMULAS)
def test_a_kernel_is_resized_by_its_formula(flex: str, side: int, flexed: dict[str, ForeignModel]) -> None:
    tower = flexed[flex].model.image_tower
    kernel = tower.kernel.detach()
    with torch.no_grad():
        found = tower.resize_kernel(kernel, (side, side)).numpy()
        assert torch.allclose(tower.resize_kernel(kernel, (8, 8)), kernel, rtol=0, atol=1e-6)  # its own size
    np.testing.assert_allclose(found, FORMULAS[flex](kernel.numpy(), side), rtol=0, atol=2e-6)


def test_an_even_patch_keeps_its_embedding_under_area_alone(flexed: dict[str, ForeignModel]) -> None:
    """Enlarging threefold with half-pixel centres, every old pixel but those at the rim has the weight of nine new ones."""
    kernel = torch.zeros(16, 3, 8, 8)
    kernel[:, :, 2:6, 2:6] = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    even = {flex: flexed[flex].model.image_tower.resize_kernel(kernel, (24, 24)).sum((1, 2, 3)) for flex in ("area", "bilinear")}
    torch.testing.assert_close(even["area"], kernel.sum((1, 2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(even["bilinear"], 9 * kernel.sum((1, 2, 3)), rtol=0, atol=1e-4)


def test_kept_embeddings_of_one_way_are_never_taken_for_those_of_another(flexed: dict[str, ForeignModel]) -> None:
    assert len({model_fingerprint(model) for model in flexed.values()}) == len(FLEXES) == 5

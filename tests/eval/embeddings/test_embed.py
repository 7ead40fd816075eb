"""Means and lengths of embeddings, what a model is handed, and how speeds are added up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flexiclip_eval.embeddings.embed import _speed, _total, class_embeddings, to_device, unit_rows
from kit.evaluation import Foreign, toy_model, toys
from PIL import Image

from flexiclip.data.images import EvalTransform
from flexiclip.model_folder import LoadedModel


def test_class_embeddings_are_means_of_unit_rows() -> None:
    """A long prompt vector weighs no more than a short one; the mean has length 1."""
    table = {"a": [3.0, 0, 0, 0], "b": [0, 0.1, 0, 0], "c": [0, 0, 5.0, 0]}
    made = class_embeddings(lambda texts: unit_rows(torch.tensor([table[text] for text in texts])), [["a", "b"], ["c"]])
    torch.testing.assert_close(made, torch.tensor([[0.5**0.5, 0.5**0.5, 0, 0], [0, 0, 1, 0]]))


def test_unit_rows_in_float32() -> None:
    rows = unit_rows(torch.tensor([[3.0, 4.0], [torch.nan, 1.0], [torch.inf, 1.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0, 0], [0, 0], [0, 0]]))


def test_speeds_are_of_the_median_batch_and_add_up_over_ranks() -> None:
    assert _speed([10, 10, 10, 5], [9.0, 1.0, 2.0, 5.0]) == 5.0  # of 10, 5 and 1; the first batch warms up
    assert _speed([10, 0, 10], [9.0, 1.0, 2.0]) == 5.0  # a rank without images runs on a blank one
    assert _speed([10], [1.0]) is None
    assert _total([5.0, 7.0]) == 12.0
    assert _total([5.0, None]) is None


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


def test_to_device_gives_what_the_transform_gives(loaded: LoadedModel) -> None:
    """Images are kept as uint8 and normalised in batches, by the mean and the std of the model."""
    preprocess = replace(loaded.config.model.preprocess, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    config = replace(loaded.config, model=replace(loaded.config.model, preprocess=preprocess))
    transform = EvalTransform((24, 24), preprocess)
    other = replace(loaded, transform=transform, config=config)
    images, cpu = [toy.image for toy in toys(3)], torch.device("cpu")
    batch = torch.stack([transform.pixels(image) for image in images])
    expected = torch.stack([transform(image) for image in images])
    by_torch = (batch / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    torch.testing.assert_close(expected, by_torch)
    assert torch.equal(to_device(other, batch, cpu), expected)
    assert torch.equal(to_device(other, expected, cpu), expected)  # normalised already
    assert torch.equal(to_device(Foreign(None, transform, None), batch, cpu), batch)  # it prepares its images itself
    blank = to_device(other, torch.empty(0), cpu)
    assert torch.equal(blank, transform(Image.new("RGB", (64, 64)))[None])

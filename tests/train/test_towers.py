"""The modules that an engine trains and the locked ones beside them: what goes in, what comes out, and what of them trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kit.two_towers import CLASSES, DIM, IDS, NORMALIZED, TEXT, inputs, model_of, pixels

from flexiclip.train.towers import Classifier, LockedTowers, TextFeatures, Towers

LOCK = {"lock": True, "init": "x"}


@torch.no_grad()
def test_towers_give_each_exit_in_order_and_then_the_end_and_the_text() -> None:
    """Every half normalised as the model says, at the length that is asked for."""
    loaded = model_of(image={"exits": (1, 2), "exit_heads": "separate"})
    model, given = loaded.model, inputs()
    images = pixels(given.images, NORMALIZED)
    for seqhw in (2, 3):
        *found, text = Towers(model)(given.images, given.tokens, seqhw)
        expected = []
        for depth in (1, 2, 3):
            x = model.image_tower._first_tokens(images, seqhw, None)
            for block in model.image_tower.blocks[:depth]:
                x = block(x)
            norm = model.image_tower.norm if depth == 3 else model.image_tower.exit_norms[depth - 1]
            head = model.image_projection if depth == 3 else model.exit_projections[depth - 1]
            expected.append(torch.nn.functional.normalize(head(norm(x).mean(1)), dim=1))
        assert len(found) == 3
        for mine, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(text, model.encode_text(given.tokens, normalize=True), rtol=0, atol=1e-6)


@torch.no_grad()
def test_towers_of_a_classifier_give_logits_of_normalised_pixels() -> None:
    model, given = model_of(text=None, classes=CLASSES, embed_dim=CLASSES).model, inputs()
    (logits,) = Classifier(model)(given.images, 3)
    torch.testing.assert_close(logits, model.encode_image(pixels(given.images, NORMALIZED), 3), rtol=0, atol=1e-5)
    assert float((logits.norm(dim=1) - 1).abs().max()) > 0.01, "not of length 1"


@torch.no_grad()
def test_locked_towers_give_features_and_the_rest_of_the_step_the_same_embeddings() -> None:
    lock = {"lock": True, "init": "x"}
    model, given = model_of(image=lock, text={**TEXT, **lock}).model, inputs()
    locked, towers = LockedTowers(model), Towers(model)
    features = locked.image(given.images, 3), locked.text(given.tokens, given.caption_ids)
    torch.testing.assert_close(features[0], model.image_tower(pixels(given.images, NORMALIZED), 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(features[1], model.text_tower(given.tokens), rtol=0, atol=0)
    found = towers(*features, 2)
    expected = model(pixels(given.images, NORMALIZED), given.tokens, 3)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
    assert {name.split(".")[0] for name, _ in towers.named_parameters()} == {"image_projection", "text_projection"}


@torch.no_grad()
def test_locked_towers_take_kept_text_features_for_captions_that_all_have_them() -> None:
    model, given = model_of(text={**TEXT, "lock": True, "init": "x"}).model, inputs()
    kept = TextFeatures(torch.tensor([0, 2, 4, 9]), torch.arange(4.0)[:, None].expand(4, 16).contiguous())
    locked = LockedTowers(model, text_features=kept)
    assert locked.text(given.tokens, IDS)[:, 0].tolist() == [2.0, 3.0, 2.0, 1.0, 3.0, 3.0, 0.0]
    unknown = torch.where(IDS == 2, torch.tensor(3), IDS)
    torch.testing.assert_close(locked.text(given.tokens, unknown), model.text_tower(given.tokens), rtol=0, atol=0)


@torch.no_grad()
def test_locked_towers_return_the_inputs_of_towers_that_train() -> None:
    model, given = model_of().model, inputs()
    locked = LockedTowers(model)
    assert locked.image(given.images, 3) is given.images
    assert locked.text(given.tokens, given.caption_ids) is given.tokens


@pytest.mark.parametrize(
    ("image", "text", "trained"),
    [
        ({}, TEXT, {"image_tower", "text_tower", "image_projection", "text_projection"}),
        (LOCK, TEXT, {"text_tower", "image_projection", "text_projection"}),
        ({**LOCK, "unlock_last": 1}, {**TEXT, **LOCK}, {"image_tower", "image_projection", "text_projection"}),
    ],
    ids=["open", "image locked", "last image block open"],
)
def test_trained_parameters_are_those_that_take_gradients_by_the_models_names(
    image: dict[str, Any], text: dict[str, Any], trained: set[str]
) -> None:
    """Every parameter of the model that trains, except for the scalars, which have an optimizer of their own."""
    model = model_of(image=image, text=text).model
    found = dict(Towers(model).trained_parameters())
    scalars = {id(p) for p in model.scalars()}
    expected = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in scalars}
    assert found.keys() == expected.keys()
    assert all(found[name] is p for name, p in expected.items())
    assert {name.split(".")[0] for name in found} == trained


@pytest.mark.parametrize("lock", [{}, LOCK], ids=["open", "locked"])
@torch.no_grad()
def test_dummy_inputs_go_through_the_towers(lock: dict[str, Any]) -> None:
    towers = Towers(model_of(image=lock, text={**TEXT, **lock}).model)
    given = towers.dummy_inputs(torch.device("cpu"))
    assert [tuple(x.shape) for x in given] == ([(1, 16), (1, 16)] if lock else [(1, 3, 24, 24), (1, 2)])
    assert [tuple(z.shape) for z in towers(*given, 2)] == [(1, DIM), (1, DIM)]
    classifier = Classifier(model_of(image=lock, text=None, classes=CLASSES, embed_dim=CLASSES).model)
    (logits,) = classifier(*classifier.dummy_inputs(torch.device("cpu")), 2)
    assert logits.shape == (1, CLASSES)


@torch.no_grad()
def test_towers_under_autocast_give_float32_rows_of_bfloat16_products() -> None:
    model, given = model_of().model, inputs()
    exact = Towers(model)(given.images, given.tokens, 3)
    half = Towers(model, lambda: torch.autocast("cpu", torch.bfloat16))(given.images, given.tokens, 3)
    for z, wanted in zip(half, exact, strict=True):
        assert z.dtype == torch.float32
        torch.testing.assert_close(z, wanted, rtol=0, atol=0.05)
        assert not torch.equal(z, wanted)
        assert not torch.equal(z, z.bfloat16().float()), "the rows are divided by their length in float32"


def test_text_features_finds_the_rows_of_ids_in_any_order_or_none() -> None:
    features = TextFeatures(torch.tensor([-7, 2, 9]), torch.tensor([[1.0], [2.0], [3.0]]))
    found = features(torch.tensor([9, -7, 9]))
    assert found is not None
    assert found.tolist() == [[3.0], [1.0], [3.0]]
    for missing in (-8, 3, 10):  # before, between and after the ids
        assert features(torch.tensor([2, missing])) is None

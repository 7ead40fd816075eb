"""A recipe's model on the meta device: its parameters and sizes against the same model with weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit.plans import IMAGE, SIDE, TEXT, WORDS, config_of, counted, real_model

from flexiclip.config import ImageTowerConfig, PatchConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.plan.towers import Parameters, build


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (replace(IMAGE, lock=True, unlock_last=2), replace(TEXT, lock=True)),
        (replace(IMAGE, exits=(1, 3), exit_heads="separate"), TEXT),
    ],
    ids=["locked", "exits"],
)
def test_build_has_no_weights_and_the_parameters_of_the_real_model(image: ImageTowerConfig, text: TextTowerConfig) -> None:
    """Part by part. A text tower that is locked as a whole runs outside of the engine."""
    config = config_of(image, text)
    model, real = build(config), real_model(config)
    assert all(p.device.type == "meta" for p in model.module.parameters())
    found = {part.part: part for part in model.parts}
    names = ["image_tower", "text_tower", "image_projection", "text_projection", *["exit_projections"] * bool(image.exits)]
    assert list(found) == [*names, "scalars"]
    for name in names:
        parameters = list(getattr(real, name).parameters())
        assert found[name].total == sum(p.numel() for p in parameters) > 0
        assert found[name].trained == sum(p.numel() for p in parameters if p.requires_grad)
        assert found[name].frozen == sum(p.numel() for p in parameters if not p.requires_grad)
        assert found[name].in_engine == (0 if name == "text_tower" and text.lock else found[name].total)
    assert found["scalars"] == Parameters("scalars", sum(p.numel() for p in real.scalars()), 0, 0)


def test_model_total_is_the_sum_over_its_parts() -> None:
    model = build(config_of(replace(IMAGE, lock=True, unlock_last=2)))
    assert (model.total("in_engine"), model.total("trained") - len(list(model.module.scalars()))) == counted()
    assert model.total("total") == model.total("trained") + model.total("frozen")


def test_model_tokens_and_pixels_are_those_of_a_batch() -> None:
    config = config_of()
    model = build(config)
    assert model.caption_tokens == WORDS
    assert [model.image_tokens(seqhw) for seqhw in (2, 4, 8)] == [4, 16, 64]
    assert [model.pair_tokens(seqhw) for seqhw in (2, 4)] == [4 + WORDS, 16 + WORDS]
    assert model.pixels() == 3 * SIDE * SIDE
    with_class = build(config_of(replace(IMAGE, pool="tok")))
    assert with_class.image_tokens(4) == 17
    wide = build(config_of(replace(IMAGE, image_size=(32, 64), base_patch_size=(8, 16))))
    assert wide.pixels() == 3 * 32 * 64


def test_model_pair_flops_of_a_gradient_cache_and_of_recomputed_blocks_are_more() -> None:
    """The same towers, one more forward pass of them; the count itself is tests/models/test_flops_training.py."""
    model = build(replace(config_of(), patch=PatchConfig((4,))), samples=100)
    plain, cached, recomputed = model.pair_flops(4), model.pair_flops(4, several=True), model.pair_flops(4, checkpointing=True)
    assert plain.model == cached.model == recomputed.model
    assert plain.total < recomputed.total < cached.total


def test_model_text_cost_is_paid_once_where_the_features_of_a_locked_tower_are_kept() -> None:
    open_tower, locked = config_of(), config_of(text=replace(TEXT, lock=True))
    assert not build(open_tower, samples=100).text_cost().cached
    assert build(locked, samples=100).text_cost().cached
    assert not build(locked, samples=10**9).text_cost().cached


def test_build_takes_the_vocabulary_that_a_run_would_train() -> None:
    """The tokenizer is not there yet; the recipe has its size."""
    text = replace(TEXT, vocab_size=None, context_length=None, pad_id=None, eos_id=None)
    config = config_of(text=text)
    model = build(replace(config, tokenizer=replace(config.tokenizer, context_length=WORDS + 3)))
    assert (model.text_config.vocab_size, model.text_config.context_length) == (96, WORDS + 3)
    assert model.text_config.pad_id != model.text_config.eos_id
    assert model.module.text_tower.token_embedding.weight.shape == (96, 64)


def test_build_without_the_configuration_of_a_foreign_tower_says_what_is_needed() -> None:
    foreign = TextTowerConfig(kind="huggingface", name="./missing", pool="mean")
    with pytest.raises(UserError, match=r"\(a plan needs the text tower's configuration, not its weights\)$"):
        build(config_of(text=foreign))


def test_planning_leaves_nothing_behind() -> None:
    """The matrices of the resizes are cached for the whole process: a model built without weights must not fill in empty ones."""
    config = replace(config_of(), patch=PatchConfig((4,)))
    build(config)
    assert all(buffer.device.type == "cpu" for buffer in real_model(config).buffers())

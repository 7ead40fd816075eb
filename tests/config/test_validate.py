"""The rules inside a section and across sections, each with the message that mends it."""

from __future__ import annotations

import dataclasses
import math
import types
import typing

import pytest

from flexiclip.config import Config, Duration, EngineConfig, OptimizerConfig, TrainConfig, from_dict
from flexiclip.config.validate import valid_seqhw, validate
from flexiclip.errors import UserError
from flexiclip.schedules import Horizon, SeqhwSchedule

BROKEN = {
    "patch.seqhw: [7, 9] do not divide model.image.image_size=240; valid: [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20": {
        "patch": {"seqhw": [5, 9, 7]}
    },
    "patch.seqhw: [11] do not divide": {"eval": {"seqhw": [11]}},
    "patch.seqhw: [13] do not divide": {"patch": {"stages": [{"start": "50%", "seqhw": [13]}]}},
    "patch.seqhw is empty": {"patch": {"seqhw": []}},
    "patch.weights has 2 numbers for 1 lengths": {"patch": {"seqhw": [5], "weights": [1, 2]}},
    "patch.weights=cheap: uniform, inverse_cost or a list": {"patch": {"weights": "cheap"}},
    "patch.spread=3.0 must be above 0 and at most 2": {"patch": {"spread": 3}},
    "patch.curriculum=clipa and patch.stages both order the lengths": {
        "patch": {"curriculum": "clipa", "stages": [{"start": "50%", "seqhw": [5]}]}
    },
    "patch.curriculum=short_to_long needs two lengths": {
        "patch": {"curriculum": "short_to_long", "seqhw": [5, 6], "weights": [0, 1]}
    },
    "not all 0": {"patch": {"seqhw": [5, 6], "weights": [0, 0]}},
    "model.image.lock=true freezes a tower without weights": {"model": {"image": {"lock": True}}},
    "model.text.lock=true freezes a tower without weights": {"model": {"text": {"lock": True}}},
    "model.image.projection=none needs model.embed_dim=512 to be the tower's width 64": {
        "model": {"image": {"projection": "none", "width": 64}}
    },
    "leave nothing to train": {
        "model": {
            "image": {"lock": True, "init": "m", "projection": "none"},
            "text": {"lock": True, "init": "m", "projection": "none"},
        }
    },
    "loss.kind=softmax has no bias: set model.logit_bias_init=null": {"model": {"logit_bias_init": -10}},
    "model.logit_scale_init=200.0 is above logit_scale_max=100.0": {"model": {"logit_scale_init": 200}},
    "patch.seqhw: [7] do not divide": {"model": {"image": {"default_seqhw": 7}}},
    "optimizer.betas=(0.9, 1.0) must be 0 or more and below 1": {"optimizer": {"betas": [0.9, 1.0]}},
    "train.trackers=['wandb', 'wandb'] names one twice": {"train": {"trackers": ["wandb", "wandb"]}},
    "train.trackers": {"train": {"trackers": ["mlflow"]}},
    "engine.deepspeed.gradient_accumulation_steps is decided by train.micro_batch_size": {
        "engine": {"deepspeed": {"gradient_accumulation_steps": 8}}
    },
    "engine.deepspeed.zero_optimization.stage is decided by engine.zero_stage": {
        "engine": {"deepspeed": {"zero_optimization": {"stage": 3}}}
    },
    "loss.kind=sigmoid needs model.logit_bias_init": {"loss": {"kind": "sigmoid"}},
    "model.text=null is an image tower alone: objective=classification trains one": {"model": {"text": None}},
    "objective=classification trains an image tower alone: set model.text=null": {"objective": "classification"},
    "objective=classification needs model.classes": {"objective": "classification", "model": {"text": None}},
    "objective=classification needs data.labels": {"objective": "classification", "model": {"text": None, "classes": 9}},
    "model.classes are those of a classifier": {"model": {"classes": 9}},
    "model.image.projection=none leaves a classifier without its head": {
        "objective": "classification",
        "model": {"text": None, "classes": 9, "image": {"projection": "none"}},
    },
    "objective=distillation needs distillation.teacher": {"objective": "distillation"},
    "distillation.cosine compares embeddings": {
        "objective": "distillation",
        "distillation": {"teacher": "t", "cosine": 1},
        "model": {"text": None},
    },
    "must be 0 or more, and not both 0": {"distillation": {"kl": 0}},
    "distillation.temperature=0.0 must be positive": {"distillation": {"temperature": 0}},
    "classification.label_smoothing=1.0 must be 0 or more and below 1": {"classification": {"label_smoothing": 1}},
    "data.mixup=0.2 mixes images and classes, and captions cannot be mixed": {"data": {"mixup": 0.2}},
    "data.mixup=-1.0 must be 0 or more": {"data": {"mixup": -1}},
    "train.micro_batch_size=64 exceeds global_batch_size=32": {"train": {"global_batch_size": 32, "micro_batch_size": 64}},
    "engine.offload=optimizer needs ZeRO: set engine.kind=deepspeed": {"engine": {"kind": "torch", "offload": "optimizer"}},
    "engine.offload=parameters needs ZeRO: set": {"engine": {"zero_stage": 0, "offload": "parameters"}},
    "engine.offload=parameters needs engine.zero_stage=3, not 2": {"engine": {"zero_stage": 2, "offload": "parameters"}},
    "model.image.exits=[1]: their loss is that of objective=contrastive": {
        "objective": "classification",
        "model": {"text": None, "classes": ["a", "b"], "image": {"exits": [1]}},
        "data": {"labels": "cls"},
    },
    "loss.widths=(0, 8) must be positive": {"loss": {"widths": [0, 8]}},
    "loss.widths=[64, 513]: the embeddings have 512 columns (model.embed_dim)": {"loss": {"widths": [64, 513]}},
    "train.steps=0 must be positive": {"train": {"steps": 0}},
    "train.log_every=0% must be positive": {"train": {"log_every": "0%"}},
    "train.keep_every=0 must be positive": {"train": {"keep_every": 0}},
    "eval.every=0 must be positive; null: at the end only": {"eval": {"every": 0}},
    "eval.batch_size=0 must be positive": {"eval": {"batch_size": 0}},
    "train.log_every=10 minutes: only train.save_every goes by the clock": {"train": {"log_every": "10 minutes"}},
    "patch.stages[0].start=3 TFLOPs: only train.steps can be a number of FLOPs": {
        "patch": {"stages": [{"start": "3 TFLOPs", "seqhw": [5]}]}
    },
    "train.steps=5% cannot be a percentage of the run": {"train": {"steps": "5%"}},
    "data.crop_ratio=(2.0, 0.5) must satisfy 0 < low <= high": {"data": {"crop_ratio": [2, 0.5]}},
    "data.crop_ratio=(0.0, 1.0) must satisfy 0 < low <= high": {"data": {"crop_ratio": [0, 1]}},
    "train.global_batch_size=0 must be positive": {"train": {"global_batch_size": 0}},
    "optimizer.lr=-1.0 must be positive": {"optimizer": {"lr": -1}},
    "optimizer.weight_decay=-0.1 must be 0 or more": {"optimizer": {"weight_decay": -0.1}},
    "model.image.image_size=(0, 240) must be positive": {"model": {"image": {"image_size": [0, 240]}}},
    "model.text.kind=huggingface needs model.text.name": {"model": {"text": {"kind": "huggingface"}}},
    "model.text.pool=cls is for model.text.kind=huggingface": {"model": {"text": {"pool": "cls"}}},
    "data.workers=-1 must be 0 or more": {"data": {"workers": -1}},
    "data.captions is empty": {"data": {"captions": []}},
    "data.crop_scale=(0.9, 0.4) must satisfy 0 < low <= high <= 1": {"data": {"crop_scale": [0.9, 0.4]}},
    "data.stall_s=1000000000.0 must be at most 1e+08 seconds": {"data": {"stall_s": 1e9}},
    "data.read_timeout_s=1000000000.0 must be at most": {"data": {"read_timeout_s": 1e9}},
    "train.rank_timeout_s=1000000000.0 must be at most": {"train": {"rank_timeout_s": 1e9}},
    "data.train.weight=0.0 must be positive": {"data": {"train": [{"shards": "a.tar", "weight": 0}]}},
}


@pytest.mark.parametrize(("message", "data"), BROKEN.items())
def test_validate_names_a_broken_rule(message, data):
    with pytest.raises(UserError) as caught:
        validate(from_dict(Config, data))
    assert message in str(caught.value)


def test_lengths_that_divide_both_sides():
    assert valid_seqhw(240) == [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 30, 40, 48, 60, 80, 120, 240]
    assert valid_seqhw((64, 48)) == [1, 2, 4, 8, 16]


def test_the_defaults_are_valid_and_are_the_papers():
    config = Config()
    validate(config)
    assert config.patch.seqhw == (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
    assert [240 // s for s in config.patch.seqhw] == [48, 40, 30, 24, 20, 16, 15, 12, 10, 8]


def test_independent_locks_are_valid_where_weights_are_named():
    locked = {"image": {"lock": True, "init": "runs/a"}, "text": {"lock": True, "kind": "huggingface", "name": "folder"}}
    config = from_dict(Config, {"model": locked})
    validate(config)  # the two projections still train
    assert config.model.image.lock
    assert config.model.text.lock


TOLD_ELSEWHERE = {
    "train_batch_size": (8, "train.global_batch_size"),
    "train_micro_batch_size_per_gpu": (8, "train.micro_batch_size"),
    "gradient_accumulation_steps": (8, "train.micro_batch_size"),
    "gradient_clipping": (0.5, "optimizer.grad_clip"),
    "optimizer": ({"type": "Adam"}, "the section optimizer"),
    "scheduler": ({"type": "WarmupLR"}, "optimizer.schedule"),
    "bf16": ({"enabled": True}, "train.precision"),
    "fp16": ({"enabled": True}, "train.precision"),
    "zero_optimization.stage": (2, "engine.zero_stage"),
    "zero_optimization.offload_optimizer": ({"device": "cpu"}, "engine.offload"),
    "zero_optimization.offload_param": ({"device": "cpu"}, "engine.offload"),
}
"""Keys of DeepSpeed's configuration, a value of each, and what in a recipe says the same."""


@pytest.mark.parametrize("key", TOLD_ELSEWHERE)
def test_a_key_of_deepspeed_that_the_recipe_says_elsewhere_is_refused(key):
    value, ours = TOLD_ELSEWHERE[key]
    section, _, inside = key.partition(".")
    given = {section: {inside: value}} if inside else {section: value}
    with pytest.raises(UserError) as caught:
        validate(from_dict(Config, {"engine": {"deepspeed": given}}))
    assert str(caught.value) == f"engine.deepspeed.{key} is decided by {ours}: set that instead"


def test_every_key_that_we_generate_for_deepspeed_is_ours_or_may_be_changed():
    """What deepspeed_config() says by itself is refused from the recipe, but for what neither numbers nor memory depend on."""
    from flexiclip.train.deepspeed import OFFLOADED, deepspeed_config

    generated = deepspeed_config(EngineConfig(zero_stage=3, offload="parameters"), TrainConfig(), OptimizerConfig(), 1)
    zero = generated.pop("zero_optimization")
    keys = {*generated, *(f"zero_optimization.{key}" for key in zero)}
    assert set(zero) == {"stage", *OFFLOADED["parameters"]}
    assert keys - set(TOLD_ELSEWHERE) == {"zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown"}


def numbers(cls, where=()):
    """(path, value that puts a number there) of every field of a section, and of those inside, that takes a float."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        choices = typing.get_args(hints[field.name]) if _is_union(hints[field.name]) else (hints[field.name],)
        for choice in choices:
            arguments = typing.get_args(choice)
            if dataclasses.is_dataclass(choice) and choice is not Duration:
                yield from numbers(choice, (*where, field.name))
            elif choice is float:
                yield (*where, field.name), lambda number: number
            elif float in arguments:
                count = 2 if Ellipsis in arguments else len(arguments)
                yield (*where, field.name), lambda number, count=count: [number] * count
            for inner in arguments:
                for part in typing.get_args(inner) or (inner,):
                    if dataclasses.is_dataclass(part) and part is not Duration:
                        name = (*where, field.name)
                        for path, make in numbers(part):
                            yield name, lambda number, path=path, make=make, part=part: [_around(part, path, make(number))]


def _is_union(hint):
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _around(section, path, value):
    """A section in a list, with what it must have."""
    given = {"SourceConfig": {"shards": "a.tar"}, "PatchStage": {"start": 0, "seqhw": [5, 6]}}[section.__name__]
    return {**given, path[0]: value}


NUMBERS = {".".join((*path, str(index))): (path, make) for index, (path, make) in enumerate(numbers(Config))}


def test_the_fields_that_are_numbers_are_found():
    paths = {".".join(path) for path, _ in NUMBERS.values()}
    assert {"optimizer.lr", "optimizer.betas", "optimizer.grad_clip", "patch.weights", "model.preprocess.std"} < paths
    assert {"data.train", "patch.stages", "data.crop_scale", "distillation.temperature", "model.logit_bias_init"} < paths
    assert len(paths) >= 28


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e39, 10**400], ids=str)
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_a_recipe_is_finite(name, number):
    path, make = NUMBERS[name]
    data = make(number)
    for key in reversed(path):
        data = {key: data}
    with pytest.raises(UserError, match=r"is not a finite number: write one of at most 3\.4e"):
        from_dict(Config, data)


def test_weights_that_are_as_large_as_they_may_be_have_shares():
    largest = from_dict(Config, {"patch": {"seqhw": [5, 6], "weights": [3.4e38, 3.4e38]}})
    schedule = SeqhwSchedule(largest.patch, 0, Horizon(10, 1, None), float)
    assert schedule.shares() == {5: 0.5, 6: 0.5}

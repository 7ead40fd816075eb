"""The model of a recipe on the meta device: its parameters and shapes, without weights, data or a network.

A text tower of Hugging Face or open_clip needs its configuration (from a folder, a package or the library's own list), but not
its weights. A UserError says so if the configuration cannot be had offline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from flexiclip.config import Config, TextTowerConfig
from flexiclip.config.schema import pair
from flexiclip.data.tokenizers import build_tokenizer
from flexiclip.errors import UserError
from flexiclip.model_folder import fill_from_tokenizer
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flops import PairFlops, TextCost, foreign_shape, pair_flops, text_cost
from flexiclip.models.text import build_text_tower
from flexiclip.models.variants import Shape, shape_of
from flexiclip.schedules import keeps_text_features, pair_tokens


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of one part of the model."""

    part: str
    trained: int
    frozen: int
    in_engine: int  # those of either kind that the engine holds, which ZeRO-3 shards

    @property
    def total(self) -> int:
        """Trained and frozen ones together."""
        return self.trained + self.frozen


@dataclass(frozen=True)
class Model:
    """The facts about a model that the formulas need. `text_config` includes the values that come from the tokenizer."""

    config: Config
    text_config: TextTowerConfig
    module: FlexiCLIP
    image: Shape
    text: Shape
    parts: tuple[Parameters, ...]
    samples: int | None  # per epoch, if known

    @property
    def caption_tokens(self) -> int:
        """Columns of a batch of captions. In a batch of a few hundred, the longest caption fills the context."""
        return int(self.module.text_tower.context_length)

    def image_tokens(self, seqhw: int) -> int:
        """Tokens in the image tower, with the class token if there is one."""
        return seqhw * seqhw + (self.config.model.image.pool == "tok")

    @property
    def pair_tokens(self) -> Callable[[int], int]:
        """Maps seqhw to the tokens of a pair that count in train.micro_tokens."""
        return pair_tokens(self.config.model, self.config.tokenizer)

    def text_cost(self) -> TextCost:
        """Forward FLOPs of a caption, without the projection."""
        kept = partial(keeps_text_features, self.config.model, self.config.data, self.samples)
        cost = text_cost(self.config, kept, self.module.text_tower)
        assert cost is not None, "validate() refuses a recipe without a text tower"
        return cost

    def pair_flops(self, seqhw: int, several: bool = False, checkpointing: bool = False) -> PairFlops:
        """FLOPs of a pair in a step, by flexiclip/models/flops.py.

        several: the step has several micro-batches. checkpointing: blocks are recomputed.
        """
        return pair_flops(self.config.model, self.text_cost(), seqhw, several=several, checkpointing=checkpointing)

    def pixels(self) -> int:
        """Number of values in an image."""
        height, width = pair(self.config.model.image.image_size)
        return 3 * height * width

    def total(self, what: str) -> int:
        """The sum of one field of Parameters over the parts."""
        return sum(getattr(part, what) for part in self.parts)


def build(config: Config, samples: int | None = None) -> Model:
    """The model of a recipe on the meta device. samples: per epoch.

    Raises UserError if its tokenizer or the configuration of another library's tower is not on this machine.
    """
    config = _with_vocabulary(config)
    text_config = config.model.text
    assert text_config is not None, "validate() refuses a recipe without a text tower"
    try:
        with torch.device("meta"):
            module = FlexiCLIP(config.model, build_text_tower(text_config, pretrained=False))
    except UserError as error:
        if text_config.kind == "transformer":
            raise
        raise UserError(f"{error} (a plan needs the text tower's configuration, not its weights)") from None
    own = text_config.kind == "transformer"
    return Model(
        config=config,
        text_config=text_config,
        module=module,
        image=shape_of(config.model.image, "model.image"),
        text=shape_of(text_config, "model.text") if own else foreign_shape(module.text_tower),
        parts=_parameters(module),
        samples=samples,
    )


def _with_vocabulary(config: Config) -> Config:
    """The config with the tokenizer's values. A sentencepiece model that the run would train has the recipe's size."""
    tokenizer, text = config.tokenizer, config.model.text
    if tokenizer.kind != "sentencepiece" or tokenizer.path is not None or text is None:
        return fill_from_tokenizer(config, build_tokenizer(tokenizer))
    filled = replace(
        text,
        vocab_size=text.vocab_size or tokenizer.vocab_size,
        context_length=text.context_length or tokenizer.context_length,
        pad_id=0 if text.pad_id is None else text.pad_id,  # sizes depend on the ids only in that the two differ
        eos_id=1 if text.eos_id is None else text.eos_id,
    )
    return replace(config, model=replace(config.model, text=filled))


def _parameters(module: FlexiCLIP) -> tuple[Parameters, ...]:
    frozen_whole = {"image_tower": module.config.image.frozen, "text_tower": module.config.text_frozen}
    parts = []
    names = ["image_tower", "text_tower", "image_projection", "text_projection"]
    for name in names + ["exit_projections"] * bool(len(module.exit_projections)):
        total = sum(p.numel() for p in getattr(module, name).parameters())
        trained = sum(p.numel() for p in getattr(module, name).parameters() if p.requires_grad)
        parts.append(Parameters(name, trained, total - trained, 0 if frozen_whole.get(name, False) else total))
    return (*parts, Parameters("scalars", sum(p.numel() for p in module.scalars()), 0, 0))

"""Rules that cross the sections of a recipe."""

from __future__ import annotations

from flexiclip.config.schema import Config, ImageTowerConfig, Size, pair
from flexiclip.errors import UserError


def valid_seqhw(image_size: Size) -> list[int]:
    """Every grid side that divides both sides of the image."""
    height, width = pair(image_size)
    return [s for s in range(1, min(height, width) + 1) if height % s == 0 and width % s == 0]


def validate(config: Config) -> None:
    """Raise UserError where two sections contradict each other."""
    _check_lengths(config)
    _check_locks(config)
    _check_batch(config)
    _check_offload(config)
    if config.loss.kind == "sigmoid" and config.model.logit_bias_init is None:
        raise UserError("loss.kind=sigmoid needs model.logit_bias_init (SigLIP starts at -10)")


def _check_lengths(config: Config) -> None:
    valid = valid_seqhw(config.model.image.image_size)
    used = {*config.patch.seqhw, *(config.eval.seqhw or ()), *(s for stage in config.patch.stages for s in stage.seqhw)}
    wrong = sorted(used - set(valid))
    if wrong:
        size = config.model.image.image_size
        raise UserError(f"patch.seqhw: {wrong} do not divide model.image.image_size={size}; valid: {valid}")


def _check_locks(config: Config) -> None:
    image, text, dim = config.model.image, config.model.text, config.model.embed_dim
    if text is None:
        raise UserError("model.text=null is what an imported image tower has; a recipe needs a text tower: give model.text.kind")
    if image.lock and image.init is None:
        raise UserError("model.image.lock=true freezes a tower without weights: give model.image.init")
    if text.lock and text.init is None and text.kind == "transformer":
        raise UserError("model.text.lock=true freezes a tower without weights: give model.text.init")
    if image.projection == "none" and _width(image) not in (None, dim):
        raise UserError(f"model.image.projection=none needs model.embed_dim={dim} to be the tower's width {_width(image)}")
    if image.lock and text.lock and image.projection == text.projection == "none":
        raise UserError("model.image.lock and model.text.lock leave nothing to train: open one, or give it a projection")


def _width(image: ImageTowerConfig) -> int | None:
    return image.width if image.variant is None else None


def _check_batch(config: Config) -> None:
    train = config.train
    if train.micro_batch_size and train.micro_batch_size > train.global_batch_size:
        raise UserError(f"train.micro_batch_size={train.micro_batch_size} exceeds global_batch_size={train.global_batch_size}")
    for name in ("steps", "log_every", "keep_every"):
        duration = getattr(train, name)
        if duration is not None and duration.value <= 0:
            raise UserError(f"train.{name}={getattr(train, name)} must be positive")
    if train.compile and config.engine.kind == "deepspeed" and config.engine.zero_stage == 3:
        raise UserError("train.compile=true does not work with engine.zero_stage=3: set a stage below 3, or train.compile=false")


def _check_offload(config: Config) -> None:
    engine = config.engine
    if engine.offload == "none":
        return
    if engine.kind == "torch" or engine.zero_stage == 0:
        raise UserError(f"engine.offload={engine.offload} is ZeRO's: set engine.kind=deepspeed and engine.zero_stage=1, 2 or 3")
    if engine.offload == "parameters" and engine.zero_stage < 3:
        raise UserError(f"engine.offload=parameters needs engine.zero_stage=3, not {engine.zero_stage}: or offload=optimizer")

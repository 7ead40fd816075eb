"""The rules of a recipe that involve several sections."""

from __future__ import annotations

from flexiclip.config.schema import Config, Size, pair
from flexiclip.errors import UserError


def valid_seqhw(image_size: Size, widest_stride: Size | None = None) -> list[int]:
    """Return every grid side that divides both sides of the image into cells of at most `widest_stride` pixels."""
    height, width = pair(image_size)
    p, q = pair(widest_stride or image_size)
    sides = [s for s in range(1, min(height, width) + 1) if height % s == 0 and width % s == 0]
    return [s for s in sides if height // s <= p and width // s <= q]


def validate(config: Config) -> None:
    """Raise UserError where two sections contradict each other."""
    _check_objective(config)
    _check_lengths(config)
    _check_locks(config)
    _check_batch(config)
    _check_durations(config)
    _check_deepspeed(config)
    _check_offload(config)
    _check_nested(config)


def _check_lengths(config: Config) -> None:
    image = config.model.image
    valid = valid_seqhw(image.image_size, image.widest_stride)
    used = {*config.patch.all_seqhw, *(config.eval.seqhw or ())}
    if isinstance(image.default_seqhw, int):
        used.add(image.default_seqhw)
    wrong = sorted(used - set(valid))
    if wrong:
        strides = f", or leave gaps between kernels of {image.widest_stride} pixels" if image.widest_stride is not None else ""
        raise UserError(f"patch.seqhw: {wrong} do not divide model.image.image_size={image.image_size}{strides}; valid: {valid}")


def _check_objective(config: Config) -> None:
    """Raise UserError for what an objective needs and lacks, and for settings that would have no effect with it."""
    model, data, objective = config.model, config.data, config.objective
    if objective == "contrastive" and model.text is None:
        raise UserError("model.text=null is an image tower alone: objective=classification trains one, or give model.text.kind")
    if model.text is not None and not data.captions:
        raise UserError("data.captions is empty: name a member such as txt, or json:caption")
    if model.text is not None and data.mixup:
        raise UserError(
            f"data.mixup={data.mixup} mixes images and classes, and captions cannot be mixed: set it to 0, or model.text=null"
        )
    if config.loss.kind == "sigmoid" and objective == "contrastive" and model.logit_bias_init is None:
        raise UserError("loss.kind=sigmoid needs model.logit_bias_init (SigLIP starts at -10)")
    if config.loss.kind == "softmax" and objective == "contrastive" and model.logit_bias_init is not None:
        raise UserError("loss.kind=softmax has no bias: set model.logit_bias_init=null")
    if model.logit_scale_init > model.logit_scale_max:
        raise UserError(f"model.logit_scale_init={model.logit_scale_init} is above logit_scale_max={model.logit_scale_max}")
    if model.text is not None and model.classes is not None:
        raise UserError("model.classes are those of a classifier, an image tower alone: set model.text=null")
    if model.classes is not None and model.image.projection == "none":
        raise UserError("model.image.projection=none leaves a classifier without its head: set linear")
    if objective == "classification":
        _check_classification(config)
    if objective == "distillation":
        _check_distillation(config)


def _check_nested(config: Config) -> None:
    """Raise UserError for losses at several widths or after several blocks that cannot be computed."""
    widths, columns, exits = config.loss.widths, config.model.embed_dim, config.model.image.exits
    if (widths or exits) and config.objective != "contrastive":
        name = f"loss.widths={list(widths)}" if widths else f"model.image.exits={list(exits)}"
        raise UserError(f"{name}: their loss is that of objective=contrastive; leave them out")
    if max(widths, default=0) > columns:
        raise UserError(f"loss.widths={list(widths)}: the embeddings have {columns} columns (model.embed_dim)")


def _check_classification(config: Config) -> None:
    if config.model.text is not None:
        raise UserError("objective=classification trains an image tower alone: set model.text=null")
    if config.model.classes is None:
        raise UserError("objective=classification needs model.classes: names, a file with one on each line, or their number")
    if config.data.labels is None:
        raise UserError("objective=classification needs data.labels: the member cls, or a json field such as json:category")


def _check_distillation(config: Config) -> None:
    if config.distillation.teacher is None:
        raise UserError("objective=distillation needs distillation.teacher: a model folder or a run folder")
    if config.model.text is None and config.distillation.cosine:
        raise UserError("distillation.cosine compares embeddings, and model.text=null distils a classifier's logits: set it to 0")


def _check_locks(config: Config) -> None:
    image, text, dim = config.model.image, config.model.text, config.model.embed_dim
    if image.lock and image.init is None:
        raise UserError("model.image.lock=true freezes a tower without weights: give model.image.init")
    if text is not None and text.lock and text.init is None and text.kind == "transformer":
        raise UserError("model.text.lock=true freezes a tower without weights: give model.text.init")
    width = image.width if image.variant is None else None
    if image.projection == "none" and width not in (None, dim):
        raise UserError(f"model.image.projection=none needs model.embed_dim={dim} to be the tower's width {width}")
    if image.frozen and image.projection == "none" and (text is None or (text.frozen and text.projection == "none")):
        raise UserError("model.image.lock and model.text.lock leave nothing to train: open one, or give it a projection")


def _check_batch(config: Config) -> None:
    train = config.train
    if train.micro_batch_size and train.micro_batch_size > train.global_batch_size:
        raise UserError(f"train.micro_batch_size={train.micro_batch_size} exceeds global_batch_size={train.global_batch_size}")
    if train.compile and config.engine.kind == "deepspeed" and config.engine.zero_stage == 3:
        raise UserError("train.compile=true does not work with engine.zero_stage=3: set a stage below 3, or train.compile=false")


def _check_durations(config: Config) -> None:
    """Raise UserError for a duration in a unit that its key does not take, and for one that must not be 0."""
    train, optimizer = config.train, config.optimizer
    above_zero = {
        "train.steps": train.steps,
        "train.log_every": train.log_every,
        "train.keep_every": train.keep_every,
        "eval.every": config.eval.every,
    }
    others = {
        "train.save_every": train.save_every,
        "optimizer.warmup": optimizer.warmup,
        "optimizer.cooldown": optimizer.cooldown,
        "optimizer.timescale": optimizer.timescale,
        "patch.finish": config.patch.finish,
        **{f"patch.stages[{i}].start": stage.start for i, stage in enumerate(config.patch.stages)},
    }
    for key, duration in (above_zero | others).items():
        if duration is None:
            continue
        if key in above_zero and duration.value <= 0:
            raise UserError(f"{key}={duration} must be positive{'; null: at the end only' if key == 'eval.every' else ''}")
        if duration.unit == "minutes" and key != "train.save_every":
            raise UserError(f"{key}={duration}: only train.save_every goes by the clock; write steps, epochs or samples")
        if duration.unit == "TFLOPs" and key != "train.steps":
            raise UserError(f"{key}={duration}: only train.steps can be a number of FLOPs; write steps, epochs or samples")
        if duration.unit == "percent" and key == "train.steps":
            raise UserError(f"{key}={duration} cannot be a percentage of the run; write steps, epochs, samples or FLOPs")


_DECIDED_BY = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "optimizer.grad_clip",
    "optimizer": "the section optimizer",
    "scheduler": "optimizer.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer": "engine.offload",
    "zero_optimization.offload_param": "engine.offload",
}
"""Maps a key of a DeepSpeed config to what decides it in a recipe. If both were given, trainer and DeepSpeed could disagree."""


def _check_deepspeed(config: Config) -> None:
    given = config.engine.deepspeed
    zero = given.get("zero_optimization")
    keys = [*given, *(f"zero_optimization.{key}" for key in (zero if isinstance(zero, dict) else ()))]
    for key in keys:
        if key in _DECIDED_BY:
            raise UserError(f"engine.deepspeed.{key} is decided by {_DECIDED_BY[key]}: set that instead")


def _check_offload(config: Config) -> None:
    engine = config.engine
    if engine.offload == "none":
        return
    if engine.kind == "torch" or engine.zero_stage == 0:
        raise UserError(f"engine.offload={engine.offload} needs ZeRO: set engine.kind=deepspeed and engine.zero_stage=1, 2 or 3")
    if engine.offload == "parameters" and engine.zero_stage < 3:
        raise UserError(f"engine.offload=parameters needs engine.zero_stage=3, not {engine.zero_stage}: or offload=optimizer")

"""The memory of the activations of a micro-batch, and the peak of a step.

For its backward pass, a pre-norm block keeps these bytes per token. D is the width, M the width of the MLP, H the number of
heads, and e is 2 under bf16 autocast, else 4.

    two norms' inputs        8 D           the residual stream is float32, also under autocast
    their statistics         16
    the norms' outputs       2 e D         inputs of two linear layers
    q, k, v                  3 e D
    attention's output       e D           and 4 H for its log-sum-exp; no L^2, as SDPA is a flash kernel on GPUs and CPUs
    the MLP                  2 e M         around its activation (3 e M for quick_gelu)

The last block computes only what the pool reads. If that is a single token, the block keeps for the other tokens only what keys
and values need. A CPU that trains in bf16 keeps 2 H L^2 bytes more per sample and block (models/attention.py). They are not
counted, because plans in bf16 are for GPUs.

With M = 4 D this makes 36 D bytes per token in bf16 and 64 D in float32. Korthikanti et al. (arXiv 2205.05198, equation 1) count
34 D for half precision, with the masks of dropout and a residual stream in half precision. A checkpointed block keeps only its
input, 4 D. Under autocast the backward pass also holds a bf16 copy of each weight. A tower of another library is counted as one
of ours of the same size.

The backward pass goes through the parts from the last to the first. Each part frees its activations and leaves its gradients. If
there are several micro-batches, the first one leaves all gradients, and the others hold these and their activations at the same
time. tests/plan/test_memory.py compares the peak with torch's own record of the allocations of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flexiclip.config.schema import ImageTowerConfig, TextTowerConfig
from flexiclip.losses import GPU_TILE
from flexiclip.models.flops import tokens_read
from flexiclip.models.variants import Shape
from flexiclip.plan.states import FLOAT, Engine, States, block_weights, states
from flexiclip.plan.towers import Model


@dataclass(frozen=True)
class Part:
    """A part of the backward pass, in bytes: what it has kept, the gradients that it leaves, what it needs while it runs."""

    saved: int
    gradients: int
    scratch: int


@dataclass(frozen=True)
class Memory:
    """The peak memory of a rank in a step, and what it consists of. Bytes."""

    states: States
    inputs: int  # uint8 pixels and tokens of the rank's share of the batch
    embeddings: int  # those of the whole batch, their gradients, and the loss
    activations: int  # kept for the backward pass of one micro-batch
    peak: int


def step_memory(model: Model, engine: Engine, seqhw: int, micro: int, checkpointing: bool) -> Memory:
    """The peak of a step at one length, with micro-batches of `micro` samples."""
    config = model.config
    local = config.train.global_batch_size // engine.world
    micro = min(micro, local)
    several = micro < local
    kept = states(model, engine, several)
    halves = _parts(model, "image", seqhw, micro, checkpointing), _parts(model, "text", seqhw, micro, checkpointing)
    kept_by = [0 if several else sum(p.saved for p in half) for half in halves]
    parts = [*halves[0], *halves[1]]
    if engine.stage >= 2 or not kept.gradients:  # gradients pass through the bucket or live in it
        parts = [Part(p.saved, 0, p.scratch) for p in parts]
    activations = sum(p.saved for p in parts)
    inputs = local * (model.pixels() + 2 * 8 * model.caption_tokens)
    embeddings = _embeddings(model, local)
    loss = _loss(model, local)
    # With one micro-batch the activations exist during the loss. With several they come after it, on top of the gradients.
    at_loss = embeddings + loss + (0 if several else activations)
    first = _walk(parts)
    again = activations + max((p.scratch for p in parts), default=0)
    whole = kept.gradients + (again if several else 0)
    backward = embeddings + max(first, whole)
    if engine.stage:
        backward = embeddings + max(first, again) + kept.gradients
    forward = _forward_peak(model, seqhw, micro, kept_by)
    peak = kept.device + inputs + max(at_loss, backward, forward, kept.gradients)
    return Memory(kept, inputs, embeddings + loss, activations, peak)


def _walk(parts: Sequence[Part]) -> int:
    """The highest point of a backward pass through the parts, from the last to the first."""
    held = highest = sum(p.saved for p in parts)
    for part in reversed(parts):
        highest = max(highest, held + part.scratch + part.gradients)
        held += part.gradients - part.saved
    return max(highest, held)


def _parts(model: Model, half: str, seqhw: int, micro: int, checkpointing: bool) -> list[Part]:
    """Return the parts of one half of the model, in the order of its forward pass.

    half: image or text. Everything before the first block that trains keeps nothing and is left out.
    """
    config = model.config
    size = 2 if config.train.precision == "bf16" else FLOAT
    section: ImageTowerConfig | TextTowerConfig = config.model.image if half == "image" else model.text_config
    shape, tokens = (model.image, model.image_tokens(seqhw)) if half == "image" else (model.text, model.caption_tokens)
    opened = section.open_blocks
    blocks = shape.depth if opened is None else opened
    parts = []
    if opened is None:
        parts.append(_stem(model, half, shape, micro, size))
    read = tokens_read(section, tokens)
    if blocks:
        parts += [_block(section, shape, tokens * micro, tokens * micro, size, checkpointing)] * (blocks - 1)
        parts.append(_block(section, shape, tokens * micro, read * micro, size, checkpointing))
        ends = 1 + (len(config.model.image.exits) if half == "image" else 0)
        parts += [_head(section, shape, read, micro, size)] * ends
    return [*parts, _projection(model, half, micro, size)]


def _seen_bytes(shape: Shape, size: int) -> int:
    """Return the bytes that a block keeps for a token that others attend to, by the table above: the first norm, q, k and v.

    size: bytes of a number in the linear layers, 2 under bf16 autocast, else 4.
    """
    return FLOAT * shape.width + 8 + size * 4 * shape.width


def _computed_bytes(section: ImageTowerConfig | TextTowerConfig, shape: Shape, size: int) -> int:
    """Return the bytes that a block keeps in addition for a token that it computes: everything after q, k and v."""
    mlp = 3 if section.activation == "quick_gelu" else 2
    return FLOAT * shape.width + 8 + size * (2 * shape.width + mlp * shape.mlp_dim) + 4 * shape.heads


def _block(
    section: ImageTowerConfig | TextTowerConfig, shape: Shape, tokens: int, read: int, size: int, checkpointing: bool
) -> Part:
    """A block that computes `read` of its `tokens`."""
    saved = tokens * _seen_bytes(shape, size) + read * _computed_bytes(section, shape, size)
    saved += (size < FLOAT) * size * block_weights(shape)
    # Gradients of the residual stream, and in the type of the linear layers those of the MLP's input and hidden layer.
    scratch = tokens * FLOAT * shape.width + read * size * (shape.width + shape.mlp_dim)
    gradients = FLOAT * (block_weights(shape) + 9 * shape.width + shape.mlp_dim)
    if checkpointing:
        kept = FLOAT * tokens * shape.width
        return Part(kept, gradients, saved - kept + scratch)
    return Part(saved, gradients, scratch)


def _stem(model: Model, half: str, shape: Shape, micro: int, size: int) -> Part:
    """The patches before the kernel; an embedding table keeps nothing. The gradients are all those outside of the blocks."""
    parameters = next(part.total for part in model.parts if part.part == f"{half}_tower")
    outside = parameters - shape.depth * (block_weights(shape) + 9 * shape.width + shape.mlp_dim)
    saved = size * micro * model.pixels() if half == "image" else 0
    return Part(saved, FLOAT * max(0, outside), 0)


def _head(section: ImageTowerConfig | TextTowerConfig, shape: Shape, tokens: int, micro: int, size: int) -> Part:
    """The last norm and the pool."""
    token = FLOAT * shape.width + 8
    sample = FLOAT * shape.width
    if section.pool == "map":
        token += 3 * size * shape.width
        sample += (FLOAT + 3 * size) * shape.width + 2 * size * shape.mlp_dim
    return Part(micro * (tokens * token + sample), 0, 2 * FLOAT * micro * tokens * shape.width)


def _projection(model: Model, half: str, micro: int, size: int) -> Part:
    layer = getattr(model.module, f"{half}_projection")
    weights = sum(p.numel() for p in layer.parameters())
    width = int(getattr(model.module, f"{half}_tower").width)
    return Part(micro * (size * width + 3 * FLOAT * model.config.model.embed_dim), FLOAT * weights, 0)


def _embeddings(model: Model, local: int) -> int:
    """The joined rows of the rank for every exit and for the captions, with their gradients, at every width that has a loss."""
    config = model.config
    columns = sum(config.loss.all_widths(config.model.embed_dim))
    return 2 * (2 + len(config.model.image.exits)) * FLOAT * local * columns


def _loss(model: Model, local: int) -> int:
    """The gathered captions with their gradients, and two tiles of logits of the size that GPUs use."""
    rows = model.config.train.global_batch_size
    return 2 * FLOAT * (rows * model.config.model.embed_dim + min(GPU_TILE, rows * local))


def _forward_peak(model: Model, seqhw: int, micro: int, kept: Sequence[int]) -> int:
    """The highest point of the forward pass. kept: what the image tower and the text tower leave for the backward pass.

    In addition, a tower holds its pixels in float32, the residual stream before and after a block, and what the MLP of the block
    works on. A block that keeps its activations has already counted the latter, except for the output of the last layer.
    """
    size = 2 if model.config.train.precision == "bf16" else FLOAT
    highest = held = 0
    for shape, tokens, pixels, own in (
        (model.image, model.image_tokens(seqhw), model.pixels(), kept[0]),
        (model.text, model.caption_tokens, 0, kept[1]),
    ):
        passing = FLOAT * pixels + tokens * (2 * FLOAT * shape.width + size * (shape.width + 2 * shape.mlp_dim))
        keeping = FLOAT * pixels + tokens * (FLOAT + size) * shape.width
        highest = max(highest, held + micro * passing if own < micro * passing else 0, held + own + micro * keeping)
        held += own
    return highest

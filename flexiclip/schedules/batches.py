"""How many samples a rank encodes at once at each sequence length."""

from __future__ import annotations

from collections.abc import Callable

from flexiclip.config import Config


def pair_tokens(config: Config, seqhw: int) -> int:
    """Tokens of an image at grid side `seqhw`, and of its caption at full length where the text tower trains."""
    text = config.model.text
    return seqhw**2 + (0 if text is None or text.frozen else config.tokenizer.context_length)


def within_budget(config: Config, budget: int) -> Callable[[int], int]:
    """seqhw -> pairs that `budget` tokens hold, at least one."""
    return lambda seqhw: max(1, budget // pair_tokens(config, seqhw))


def micro_batches(config: Config, world: int) -> Callable[[int], int]:
    """seqhw -> samples that a rank encodes at once: a fixed number, what a budget of tokens holds, or its whole share."""
    train = config.train
    local = train.global_batch_size // world
    if train.micro_tokens is not None:
        held = within_budget(config, train.micro_tokens)
        return lambda seqhw: min(local, held(seqhw))
    return lambda _: train.micro_batch_size or local

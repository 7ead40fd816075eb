"""The check that both sides compute the same loss and gradients, for one CLIP model in open_clip and in flexiclip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexiclip.models.text.base import trim_padding
from flexiclip.train.objectives import Inputs
from side_by_side.pair import BETAS, SEQHW, Work, our_model, our_stepper, read_as_ours

TOLERANCE = 1e-4
"""Largest allowed difference of the loss, and of a gradient relative to the largest element in its tensor, in float32."""


def their_gradients(variant: str, model: Any, work: Work) -> tuple[float, dict[str, Tensor]]:
    """Return open_clip's loss, and its gradients by our names.

    The importer is linear in the weights, so it converts gradients in the same way.
    """
    import open_clip

    model.zero_grad(set_to_none=True)
    loss = open_clip.ClipLoss()(**model(work.normalized, work.tokens))
    loss.backward()
    mapped = read_as_ours(variant, {name: p.grad for name, p in model.named_parameters()}).state
    model.zero_grad(set_to_none=True)
    # Our class token is the sum of their token and its position. Both have the gradient of the sum, so the importer doubles it.
    return loss.item(), mapped | {"image_tower.cls": mapped["image_tower.cls"] / 2}


def our_gradients(variant: str, model: Any, work: Work) -> tuple[float, dict[str, Tensor]]:
    """Return our loss, and the gradients g of a step, from its first moments (1 - beta1) g."""
    loaded = our_model(variant, model)
    stepper, tower = our_stepper(loaded, grad_clip=None), loaded.model.text_tower
    inputs = Inputs(work.pixels, trim_padding(work.tokens, tower.pad_id), torch.arange(len(work.tokens)))
    loss = stepper(inputs, SEQHW, step=0, lr=0.0).loss
    moments = {name.removeprefix("exp_avg/"): m for name, m in stepper.engine.moments() if name.startswith("exp_avg/")}
    moments["logit_scale"] = stepper.scalars.state()["exp_avg/0"]
    return loss, {name: moment / (1 - BETAS[0]) for name, moment in moments.items()}


def largest_difference(variant: str, model: Any, work: Work) -> tuple[float, float]:
    """Return the difference of the losses and the largest one of the gradients, relative to the largest element of their tensor.

    Raises ValueError if one exceeds TOLERANCE.
    """
    (their_loss, theirs), (our_loss, ours) = their_gradients(variant, model, work), our_gradients(variant, model, work)
    if theirs.keys() != ours.keys():
        raise ValueError(f"parameters of one side alone: {sorted(theirs.keys() ^ ours.keys())}")
    apart = {name: float((ours[name] - g).abs().max() / g.abs().max().clamp_min(1e-12)) for name, g in theirs.items()}
    worst = max(apart, key=lambda name: apart[name])
    if abs(their_loss - our_loss) > TOLERANCE or apart[worst] > TOLERANCE:
        raise ValueError(f"losses {our_loss} and {their_loss}; gradients of {worst} differ by {apart[worst]:.1e} of the largest")
    return abs(their_loss - our_loss), apart[worst]

"""Steps with a NaN or Inf: finding out where it comes from, and stopping the run or skipping the step (train.on_nonfinite).

Every engine refuses a step if the norm of the gradients over all ranks is not finite. So all ranks arrive here together, with
unchanged weights and moments. Healthy steps cost nothing extra, because the search starts after the refusal and uses the tensors
of that step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NoReturn

import torch
from torch import Tensor

from flexiclip.errors import RunError
from flexiclip.train.ranks import Ranks
from flexiclip.train.towers import Tensors, Trained

REFUSED_IN_A_ROW = 100
"""After this many refused steps in a row, a run with train.on_nonfinite=skip also stops."""


def marked(gradients: Tensors, *values: Tensor) -> Tensors:
    """The gradients as they are if all values are finite, and NaN otherwise.

    So the norm of the towers' gradients is NaN too, and every engine refuses the step. No rank has to wait for the values
    before it goes backward, as it would to look at them.
    """
    zero_or_nan = 0.0 * torch.stack([value.sum() for value in values]).sum()
    return tuple(gradient + zero_or_nan for gradient in gradients)


def locate(
    ranks: Ranks,
    z: Tensors,
    loss: Tensor,
    scalars: Sequence[Tensor],
    dscalars: Sequence[Tensor],
    dz: Tensors,
    watched_backward: Callable[[], list[str]],
) -> str:
    """Return a text that says where the step's first number that is not finite appeared. Collective.

    The search follows the order in which a step computes its numbers.

    z: outputs of this rank's towers. loss: loss of the global batch. scalars: the scalars of the loss. dscalars, dz: gradients
    of the loss with respect to scalars and z. watched_backward: runs the backward pass again and returns the towers (`image`,
    `text`) whose parameters have gradients that are not finite.
    """
    halves = ranks.agree(*(_bad(half) for half in z))
    if any(halves):
        return _of_towers([name for name, bad in zip(("image", "text"), halves, strict=False) if bad], "embeddings")
    named = (
        ("a scalar of the loss is", _bad(*scalars)),
        ("the loss is", _bad(loss)),
        ("gradients of the scalars are", _bad(*dscalars)),
    )
    said = [text for text, bad in named if bad]
    if said:
        return f"{said[0]} not finite"
    if any(ranks.agree(_bad(*dz))):
        return "gradients of the loss are not finite"
    towers = watched_backward()
    return _of_towers(towers, "gradients") if towers else "the norm of the gradients is not finite, though each of them is"


class GradientWatch:
    """Context manager that watches the gradients of each tower's parameters, before an engine processes them.

    It adds up 0 x gradient, which is 0 if all gradients are finite and NaN otherwise.
    """

    def __init__(self, towers: Trained) -> None:
        self._named = towers.trained_parameters()
        self._sums = {tower: torch.zeros((), device=self._named[0][1].device) for tower in ("image", "text")}

    def __enter__(self) -> GradientWatch:
        self._hooks = [
            p.register_hook(partial(self._add, "text" if name.startswith("text_") else "image")) for name, p in self._named
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, tower: str, gradient: Tensor) -> None:
        self._sums[tower] += 0.0 * gradient.detach().float().sum()

    def bad(self, ranks: Ranks) -> list[str]:
        """Return the towers whose gradients are not finite on some rank: image, text, or both. Collective."""
        flags = ranks.agree(*(_bad(total) for total in self._sums.values()))
        return [tower for tower, bad in zip(self._sums, flags, strict=True) if bad]


class Skips:
    """The rule of train.on_nonfinite, and the number of steps skipped so far (`total`)."""

    def __init__(self, policy: Literal["stop", "skip"], total: int = 0) -> None:
        self.policy, self.total, self._row = policy, total, 0

    def healthy(self) -> None:
        """Record that a step was taken."""
        self._row = 0

    def refused(self, ranks: Ranks, step: int, seqhw: int, fault: str) -> str:
        """Count a refused step and return the line to print about it.

        Ends the run instead if train.on_nonfinite is `stop`, or after REFUSED_IN_A_ROW refused steps in a row.
        """
        line = f"step {step}, seqhw {seqhw}: {fault}"
        if self.policy == "stop":
            _stop(
                ranks,
                f"{line}; no weight was touched: train.on_nonfinite=skip goes on from the last checkpoint without such steps",
            )
        self.total, self._row = self.total + 1, self._row + 1
        if self._row == REFUSED_IN_A_ROW:
            _stop(ranks, f"{line}, as in the {REFUSED_IN_A_ROW - 1} steps before: there is nothing to go on with")
        return f"{line}: skipped, {self.total} so far"


def _stop(ranks: Ranks, message: str) -> NoReturn:
    """End the run on every rank. The main rank raises RunError with the reason."""
    if ranks.main:
        raise RunError(message)
    raise SystemExit(1)


def _bad(*tensors: Tensor) -> bool:
    return not all(bool(tensor.isfinite().all()) for tensor in tensors)


def _of_towers(names: list[str], what: str) -> str:
    towers = "the image and the text tower" if len(names) == 2 else f"the {names[0]} tower"
    return f"{what} of {towers} are not finite"

"""Compare a training step of flexiclip and open_clip: forward, backward and AdamW on the same weights, pixels and captions.

    python -m scripts.bench.subjects.training_step                              Ti/16 and S/16, batch 32 and 128 (over an hour)
    python -m scripts.bench.subjects.training_step --variants Ti --batches 32   one tower (five minutes)
    python -m scripts.bench.subjects.training_step --quick                      a small check that it works
    python -m scripts.bench.subjects.training_step --cpu-time --threads 1       for a shared machine: CPU seconds of one thread

Both sides have an image tower at 240 px (225 patches and a class token), a text tower of 12 layers of the same width, CLIP's
tokenizer and 77 positions. Loss and gradients must agree before anything is timed. `ours` is the step of `flexiclip train`, and
`ours compiled` the same with train.compile=true. Ours clips gradients, and cuts columns that are padding in the whole batch.
`open_clip` is the step of its main.py, and `open_clip compiled` that with --torchcompile. `open_clip fused` has torch's fused
AdamW, which open_clip's main.py does not use. The goals compare our faster variant with open_clip's fastest. `share` is the
FLOP/s of a step, counted for what that side computes, divided by those of a large matrix product in the same precision and round.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from flexiclip.data.images import normalize
from flexiclip.model_folder import LoadedModel
from flexiclip.models.flops import image_flops, projection_flops, text_flops
from flexiclip.models.text.base import trim_padding
from flexiclip.train.engine import has_bf16
from scripts.bench.measure import Work as Call
from scripts.bench.measure import ratio, take_turns
from scripts.bench.pair import (
    CONTEXT,
    IMAGE_SIZE,
    SEQHW,
    TOLERANCE,
    WIDTHS,
    Work,
    before_turn,
    largest_difference,
    our_model,
    our_step,
    their_model,
    their_step,
)
from scripts.bench.record import Grid, Record, options
from scripts.bench.samples import long_captions, short_captions

CAPTIONS = {"short": short_captions, "long": long_captions}
OURS, THEIRS = {"ours", "ours compiled"}, {"open_clip", "open_clip fused", "open_clip compiled"}
PRODUCT = "product"
GOALS = {"fp32": 1.4, "bf16": 1.6}
SLOW_BATCH = 4
"""Pairs in a step in bf16 on a processor without bf16, where a step takes about a hundred times as long."""
NO_BF16 = (
    "This processor has no bfloat16 instructions, so torch multiplies such matrices in plain loops in both libraries, many times "
    "more slowly than in float32. The rows in bf16 show that bf16 does not pay off here. They say nothing about a processor that "
    "has these instructions, and the goal in bf16 is not tested."
)
ABOUT = (
    "This subject times the forward pass, the backward pass and AdamW of ViT-Ti/16 and ViT-S/16 at 240 px with a 12-layer "
    "text tower of the same width, in flexiclip and in open_clip. Both have the same weights, pixels and captions "
    "(OpenMoji's names, and sentences of 20 to 30 words made of them)."
)


@dataclass(frozen=True)
class Case:
    """The work of a step: variant of the towers, kind of captions, batch size and precision."""

    variant: str
    captions: str
    batch: int
    precision: str

    def __str__(self) -> str:
        return f"{self.precision}, ViT-{self.variant}/16, {self.captions} captions, batch {self.batch}"


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Yield all cases. If bf16 is slow here, it only has the first tower and kind of captions, on a few pairs."""
    for precision in arguments.precisions:
        if precision == "bf16" and not has_bf16(torch.device("cpu")):
            yield Case(arguments.variants[0], arguments.captions[0], min(SLOW_BATCH, *arguments.batches), precision)
            continue
        for variant, captions, batch in itertools.product(arguments.variants, arguments.captions, arguments.batches):
            yield Case(variant, captions, batch, precision)


def work_of(case: Case, loaded: LoadedModel) -> Work:
    """Return the batch of both sides."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (case.batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    preprocess = loaded.config.model.preprocess
    tokens = loaded.tokenizer(CAPTIONS[case.captions](case.batch))
    return Work(pixels, normalize(pixels, preprocess.mean, preprocess.std), tokens)


def product(precision: str) -> tuple[Call, int]:
    """Return a large matrix product (a small one if bf16 is slow), and its FLOPs."""
    slow = precision == "bf16" and not has_bf16(torch.device("cpu"))
    side = 256 if slow else 2048
    a = torch.randn(side, side, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return lambda: a @ a, 2 * side**3


def step_flops(loaded: LoadedModel, batch: int, length: int, whole: bool) -> int:
    """Return the FLOPs of a step on captions of `length` tokens. whole: the last blocks compute every token."""
    model = loaded.config.model
    assert model.text is not None
    image, text = image_flops(model.image, SEQHW), text_flops(model.text, length)
    if whole:
        image, text = image.all_tokens(), text.all_tokens()
    joint = 2 * projection_flops(model.image, loaded.model.image_tower.width, model.embed_dim)
    return batch * (image.forward + image.backward() + text.forward + text.backward() + 3 * joint)


def calls(case: Case, theirs: torch.nn.Module, loaded: LoadedModel, work: Work, compiled: bool) -> dict[str, Call]:
    """Return the works that take turns, each with its own weights and moments."""

    def own(model: Any) -> Any:
        return copy.deepcopy(model)

    precision = case.precision
    sides: dict[str, Call] = {
        "ours": our_step(own(loaded), work, precision=precision),
        "open_clip": their_step(own(theirs), work, precision=precision),
        "open_clip fused": their_step(own(theirs), work, precision=precision, fused=True),
    }
    if compiled:
        sides["ours compiled"] = our_step(own(loaded), work, precision=precision, compiled=True)
        sides["open_clip compiled"] = their_step(own(theirs), work, precision=precision, compiled=True)
    return sides | {PRODUCT: product(precision)[0]}


def measure(case: Case, table: Grid, record: Record, arguments: argparse.Namespace) -> None:
    """Measure a case: add a row for every variant of both sides, and the goal."""
    theirs = their_model(case.variant)
    loaded = our_model(case.variant, theirs)
    work = work_of(case, loaded)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    sides = calls(case, theirs, loaded, work, arguments.compiled)
    times = take_turns(sides, arguments.rounds, clock=clock, before=lambda name: before_turn(kept=name in OURS))
    trimmed = trim_padding(work.tokens, loaded.model.text_tower.pad_id).shape[1]
    rate = product(case.precision)[1]
    ours, peers = (min(times.keys() & names, key=lambda name: median(times[name])) for names in (OURS, THEIRS))
    for name in (name for name in sides if name != PRODUCT):
        length = CONTEXT if name in THEIRS else trimmed
        share = ratio(times[PRODUCT], times[name]) * step_flops(loaded, case.batch, length, name in THEIRS) / rate
        spent = median(times[name])
        faster = ratio(times[name], times[ours])
        table.add(str(case), name, length, f"{1000 * spent:,.0f}", f"{case.batch / spent:.1f}", f"{faster:.2f}x", f"{share:.0%}")
    if case.precision == "fp32" or has_bf16(torch.device("cpu")):
        record.goal(str(case), ratio(times[peers], times[ours]), at_least=GOALS[case.precision])


def main() -> None:
    """Check that both sides agree, measure every case, write the record."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--variants", nargs="+", choices=tuple(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--captions", nargs="+", choices=tuple(CAPTIONS), default=list(CAPTIONS))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--precisions", nargs="+", choices=tuple(GOALS), default=list(GOALS))
    parser.add_argument("--no-compiled", dest="compiled", action="store_false", help="leave out the compiled variants")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of this process in the place of wall-clock ones")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.variants, arguments.captions, arguments.batches = ["Ti"], ["short"], [2]
        arguments.precisions, arguments.rounds, arguments.compiled = ["fp32"], 1, False
    torch.set_num_threads(arguments.threads)
    record = Record("training_step", ABOUT)
    for variant in arguments.variants:
        record.notes.append(agreement(variant))
    clock = "CPU" if arguments.cpu_time else "wall-clock"
    table = record.table(
        f"a training step, {arguments.threads} threads, medians of {arguments.rounds} rounds, {clock} time",
        *("work", "side", "text tokens", "ms", "pairs/s", "time to our best", "share"),
    )
    for case in cases(arguments):
        measure(case, table, record, arguments)
    if "bf16" in arguments.precisions and not has_bf16(torch.device("cpu")):
        record.notes.append(NO_BF16)
    record.finish(arguments)


def agreement(variant: str) -> str:
    """Compare loss and gradients of both sides in float32 on four pairs, and return a note. Raises ValueError if they differ."""
    theirs = their_model(variant)
    case = Case(variant, "long", 4, "fp32")
    loss, gradient = largest_difference(variant, theirs, work_of(case, our_model(variant, theirs)))
    return (
        f"ViT-{variant}/16 with the same weights in both libraries: the losses differ by {loss:.1e}, and the gradients by at "
        f"most {gradient:.1e} of the largest gradient in their tensor (allowed: {TOLERANCE:g})."
    )


if __name__ == "__main__":
    main()

"""Measure what flexible lengths cost in training: the step at ten lengths, each schedule's cost per sample, and the overhead.

    python -m scripts.bench.subjects.flexible_training                           ViT-Ti and S, batch 32 (a quarter of an hour)
    python -m scripts.bench.subjects.flexible_training --variants Ti --batch 8
    python -m scripts.bench.subjects.flexible_training --quick                   a small check that it works
    python -m scripts.bench.subjects.flexible_training --cpu-time --threads 1    for a shared machine: CPU seconds of one thread

The fixed model has a 16 px kernel and 15 x 15 positions, so that nothing is resized. The flexible one stores a 32 px kernel and
7 x 7 positions, and resizes both in every step, forward and backward. All steps are those of `flexiclip train`. A schedule's cost
is the mean over its steps of the expected time, by the schedule's own probabilities of the lengths. The overhead, drawing the
length and resizing, is timed alone. The goal is that at the length where it is largest, it takes at most 1 % of the fixed step.
The table has its share of each length's own step.
"""

from __future__ import annotations

import argparse
import itertools
import time
from functools import partial
from statistics import median
from typing import Any

import torch

from flexiclip.config import Config, from_dict
from flexiclip.config.schema import PatchConfig
from flexiclip.model_folder import LoadedModel, build_model
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.flops import image_model_flops
from flexiclip.models.text.base import trim_padding
from flexiclip.schedules import Horizon, SeqhwSchedule
from flexiclip.train.objectives import Inputs
from scripts.bench.measure import Work as Call
from scripts.bench.measure import ratio, take_turns
from scripts.bench.pair import IMAGE_SIZE, PATCH, SEQHW, our_stepper
from scripts.bench.record import Record, options
from scripts.bench.samples import short_captions

LENGTHS = PatchConfig().seqhw
STEPS = 1000
DRAWS = 200
SCHEDULES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "inverse_cost": {"weights": "inverse_cost"},
    "stages: 5-10, then all from 50% on": {"seqhw": LENGTHS[:4], "stages": [{"start": "50%", "seqhw": LENGTHS}]},
}
LIMIT = 0.01
"""The goal for the draw and the resize, as a share of a step."""
ABOUT = (
    "flexiclip is compared with itself. The first table gives the time of a training step at each of ten lengths, and what "
    "it costs to draw a length and to resize the kernel and the positions. The second table gives what each schedule of "
    "lengths costs per sample, relative to the fixed model of the same size at 16 px."
)


def build(variant: str, **image: Any) -> LoadedModel:
    """Return a model with random weights and CLIP's tokenizer. image: settings of the image tower."""
    towers = {"image": {"variant": variant, "image_size": IMAGE_SIZE, **image}, "text": {"variant": variant}}
    return build_model(from_dict(Config, {"model": towers, "tokenizer": {"kind": "clip", "context_length": 77}}))


def step_of(loaded: LoadedModel, batch: int, precision: str) -> partial[Any]:
    """Return a function of seqhw that takes one training step, on random pixels and OpenMoji's names."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    tokens = trim_padding(loaded.tokenizer(short_captions(batch)), loaded.model.text_tower.pad_id)
    stepper = our_stepper(loaded, precision=precision)
    return partial(stepper, Inputs(pixels, tokens.contiguous(), torch.arange(batch)), step=0, lr=1e-4)


def resize(tower: FlexiViT, seqhw: int) -> None:
    """Resize the kernel and the positions to one length, forward and backward."""
    kernel = tower.resize_kernel(tower.kernel, (IMAGE_SIZE // seqhw, IMAGE_SIZE // seqhw))
    torch.autograd.grad(
        [kernel, tower.position_embedding((seqhw, seqhw))],
        [tower.kernel, tower.posemb],
        [torch.ones_like(kernel), torch.ones(1, seqhw**2, tower.width)],
    )


def schedule_of(loaded: LoadedModel, settings: dict[str, Any]) -> SeqhwSchedule:
    """Return the schedule that the trainer would make from these settings of a recipe's `patch` section."""
    config = from_dict(PatchConfig, settings)
    return SeqhwSchedule(config, 0, Horizon(STEPS, 1, None), partial(image_model_flops, loaded.config.model))


def measure(record: Record, variant: str, lengths: tuple[int, ...], arguments: argparse.Namespace) -> None:
    """Measure one variant, and add its tables and goals to the record."""
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    flexible, fixed = build(variant), build(variant, base_patch_size=PATCH, base_grid=SEQHW)
    flexible_step, fixed_step = (step_of(loaded, arguments.batch, arguments.precision) for loaded in (flexible, fixed))
    steps: dict[str, Call] = {"fixed": partial(fixed_step, SEQHW), **{str(s): partial(flexible_step, s) for s in lengths}}
    times = take_turns(steps, arguments.rounds, warm_up=2, clock=clock)

    schedules = {name: schedule_of(flexible, settings) for name, settings in SCHEDULES.items()}
    numbers = itertools.count()

    def draw() -> None:
        for _ in range(DRAWS):
            schedules["uniform"](next(numbers))

    tower = flexible.model.image_tower
    small: dict[str, Call] = {"draw": draw, **{str(s): partial(resize, tower, s) for s in lengths}}
    extra = take_turns(small, 20, warm_up=3, clock=clock)
    drawing = median(extra["draw"]) / DRAWS

    table = record.table(
        f"ViT-{variant}, {arguments.precision}, batch {arguments.batch}, a step at each length",
        *("seqhw", "patch px", "tokens", "ms", "to fixed /16", "draw and resize us", "of this step"),
    )
    table.add(f"{SEQHW}, fixed", PATCH, SEQHW**2, f"{1e3 * median(times['fixed']):,.0f}", "1.00x", "-", "-")
    cost: dict[int, float] = {}
    overhead: dict[int, float] = {}
    for s in lengths:
        cost[s], overhead[s] = ratio(times[str(s)], times["fixed"]), drawing + median(extra[str(s)])
        share = overhead[s] / median(times[str(s)])
        cells = f"{1e3 * median(times[str(s)]):,.0f}", f"{cost[s]:.2f}x", f"{1e6 * overhead[s]:,.0f}", f"{share:.2%}"
        table.add(s, IMAGE_SIZE // s, s * s, *cells)

    if lengths == LENGTHS:
        title = f"ViT-{variant}: cost per sample by schedule, where the fixed model at 16 px costs 1"
        costs = record.table(title, "schedule", "cost", "mean tokens")
        for name, schedule in schedules.items():
            mean = partial(_mean_over_steps, schedule)
            costs.add(name, f"{mean(cost):.2f}x", f"{mean({s: float(s * s) for s in lengths}):.0f}")
    worst = max(overhead.values())
    record.goal(f"ViT-{variant}: draw and resize, of the fixed step", worst / median(times["fixed"]), at_most=LIMIT)


def _mean_over_steps(schedule: SeqhwSchedule, value: dict[int, float]) -> float:
    return sum(schedule.expected(step, value.__getitem__) for step in range(STEPS)) / STEPS


def main() -> None:
    """Measure every size, write the record."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--variants", nargs="+", choices=("Ti", "S"), default=["Ti", "S"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of this process in the place of wall-clock ones")
    arguments = parser.parse_args()
    lengths = LENGTHS
    if arguments.quick:
        arguments.variants, arguments.batch, arguments.rounds, lengths = ["Ti"], 2, 1, (5, 15)
    torch.set_num_threads(arguments.threads)
    record = Record("flexible_training", ABOUT)
    for variant in arguments.variants:
        measure(record, variant, lengths, arguments)
    record.finish(arguments)


if __name__ == "__main__":
    main()

"""Printing a plan as tables: as wide as the terminal, or as whole Markdown tables in a log or a document."""

from __future__ import annotations

import shutil
import sys

from flexiclip.plan.result import LengthPlan, Plan, StagePlan
from flexiclip.plan.towers import Parameters
from flexiclip.text_tables import TextTable, column_groups, column_widths, markdown, wrap_words

Rows = list[list[str]]


def show(plan: Plan) -> None:
    """Print a plan on stdout. On a terminal, a table that is too wide for it is divided."""
    print(render(plan, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


def render(plan: Plan, width: int | None = None) -> str:
    """A plan as plain text with aligned columns.

    width: the characters of a line. Tables that are wider are divided, and texts are broken between words. None: nothing is.
    """

    def broken(text: str) -> list[str]:
        return [text] if width is None else [line for part in text.split("\n") for line in wrap_words(part, width)]

    pieces = broken(heading(plan))
    for title, head, rows in tables(plan):
        pieces += ["", *broken(title)]
        for columns in _groups(head, rows, width):
            pieces += ["", *markdown([head[i] for i in columns], [[row[i] for i in columns] for row in rows])]
    return "\n".join([*pieces, "", *(line for text in summary(plan) for line in broken(text))])


def _groups(head: list[str], rows: Rows, width: int | None) -> list[list[int]]:
    """Return the columns of the tables into which a table is divided; each starts with the first column."""
    if width is None:
        return [list(range(len(head)))]
    return column_groups([each + 3 for each in column_widths(TextTable(head, rows))], width - 1)


def heading(plan: Plan) -> str:
    """The cluster and the batch in two lines."""
    cluster, device = plan.cluster, plan.device
    peak = device.peak(plan.precision)
    recomputed = ", activations recomputed" if plan.activation_checkpointing else ""
    captions = f"captions of {plan.caption_tokens} tokens"
    return (
        f"{cluster.nodes} x {cluster.gpus_per_node} {device.name} ({device.source}): {plan.precision} {peak / 1e12:,.3g} TFLOP/s "
        f"at {device.mfu:.0%} MFU, {plan.usable_memory / 1e9:,.0f} of {device.memory / 1e9:,.0f} GB usable per rank\n"
        f"batch {plan.global_batch_size:,} = {cluster.world:,} ranks x {plan.local_batch:,}, {captions}{recomputed}"
    )


def tables(plan: Plan) -> list[tuple[str, list[str], Rows]]:
    """(title, heading, rows) of each table."""
    stage_head = "engine|states GB|peak GB|fits|micro_batch_size|micro_tokens|recomputing|sent GB/step"
    length_head = "seqhw|tokens|share|GFLOPs/pair|micro-batch|activ. GB|peak GB|step s|network|images/s"
    return [
        ("Parameters, million", ["part", "trained", "frozen"], [_part(part) for part in plan.parameters]),
        (
            "Engines: the recipe's setting at its worst length; the largest micro-batches that fit; `recomputing`: with "
            "train.activation_checkpointing",
            stage_head.split("|"),
            [_stage(stage) for stage in plan.stages],
        ),
        ("Lengths, with the recipe's engine", length_head.split("|"), [_length(length) for length in plan.lengths]),
    ]


def summary(plan: Plan) -> list[str]:
    """The whole run in a few lines, followed by the notes."""
    lines = [
        f"on average {plan.mean_tokens:,.0f} tokens per image, {plan.mean_step_s:.3g} s per step, "
        f"{plan.images_per_s:,.0f} images/s ({plan.images_per_s / plan.cluster.nodes:,.0f} per node to read and decode)"
    ]
    if plan.hours is not None:
        hours = f"{plan.hours:,.3g} hours, {plan.hours * plan.cluster.world:,.4g} rank-hours"
        lines.append(f"{plan.steps:,} steps: {_work(plan.tflops or 0.0)}, {hours}")
    if plan.text_features_hours is not None:
        lines.append(f"before the first step, features of the locked text tower: {plan.text_features_hours:.2g} hours")
    own = next(stage for stage in plan.stages if stage.own)
    if not own.fits:
        lines.append(f"the recipe does NOT fit: {_advice(own)}")
    return [*lines, *(f"note: {note}" for note in plan.notes)]


def _work(tflops: float) -> str:
    """FLOPs as train.steps takes them, in a unit that makes the number short."""
    units = {"ZFLOPs": 1e9, "EFLOPs": 1e6, "PFLOPs": 1e3, "TFLOPs": 1.0, "GFLOPs": 1e-3}
    unit = next((name for name, size in units.items() if tflops >= size), "GFLOPs")
    return f"{tflops / units[unit]:.4g} {unit}"


def _advice(own: StagePlan) -> str:
    if own.micro_batch_size is not None:
        return f"set train.micro_batch_size={own.micro_batch_size}, or train.micro_tokens={own.micro_tokens}"
    if own.checkpointed_micro_batch_size is not None:
        return f"set train.activation_checkpointing=true and train.micro_batch_size={own.checkpointed_micro_batch_size}"
    return "not one sample fits under this engine; take a higher engine.zero_stage, more ranks, or engine.offload"


def _part(part: Parameters) -> list[str]:
    return [part.part.replace("_", " "), _million(part.trained), _million(part.frozen)]


def _million(number: int) -> str:
    return "–" if not number else f"{number / 1e6:,.2f}" if number >= 1e4 else f"{number / 1e6:.6f}"


def _stage(stage: StagePlan) -> list[str]:
    kept = stage.memory.states
    limits = [stage.micro_batch_size, stage.micro_tokens, stage.checkpointed_micro_batch_size]
    return [
        stage.engine + (" *" if stage.own else ""),
        f"{(kept.device + kept.gradients) / 1e9:.2f}" + (f" + {kept.host / 1e9:.2f} host" if kept.host else ""),
        f"{stage.memory.peak / 1e9:.2f}",
        "yes" if stage.fits else "NO",
        *("none" if limit is None else f"{limit:,}" for limit in limits),
        f"{stage.traffic / 1e9:.3g}",
    ]


def _length(length: LengthPlan) -> list[str]:
    return [
        str(length.seqhw),
        f"{length.tokens}",
        f"{length.share:.0%}",
        f"{length.flops.total / 1e9:,.3g}",
        f"{length.micro_batches} x {length.micro_batch:,}",
        f"{length.memory.activations / 1e9:.2f}",
        f"{length.memory.peak / 1e9:.2f}",
        f"{length.step_s:.3g}",
        f"{length.network_s / length.step_s:.0%}",
        f"{length.images_per_s:,.0f}",
    ]

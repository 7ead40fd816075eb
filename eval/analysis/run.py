"""The entry point of `flexiclip analyze`: opens the model, draws the sample, runs the analyses, and writes after each one.

The folder OUTPUT gets these files:

    OUTPUT/analysis.json   command, model, lengths, and the numbers of each analysis by its name
    OUTPUT/*.png           the pictures of the analyses
    OUTPUT/report.html     all of it on one page that loads nothing
"""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flexiclip_eval.analysis import attention, cka, cue_conflict, ensembles, tokens
from flexiclip_eval.analysis.figures import render_findings
from flexiclip_eval.analysis.subject import AnalysisOptions, Finding, Subject, draw_sample, subject_lengths
from flexiclip_eval.embeddings.embed import evaluating
from flexiclip_eval.models.protocol import EvalModel, geometry, model_names
from flexiclip_eval.models.sources import ANALYZED, open_model
from flexiclip_eval.report.drawing import drawn
from flexiclip_eval.report.files import check_folder, require_folder, write_whole
from flexiclip_eval.suites.layout import printable
from flexiclip_eval.suites.load import load_datasets

from flexiclip.errors import UserError

ANALYSES: dict[str, Callable[[Subject], Finding]] = {
    "cka": cka.analyze,
    "attention": attention.analyze,
    "tokens": tokens.analyze,
    "ensembles": ensembles.analyze,
    "cue-conflict": cue_conflict.analyze,
}
DPI = 120


def analyze(
    model: str, suites: Sequence[str], output: Path, options: AnalysisOptions, command: str | None = None
) -> dict[str, Finding]:
    """Run the analyses on a model, print one sentence for each, and write `output`. Raises UserError.

    model, suites: as for `flexiclip eval`. command: the line shown in the report; default: that of this process.
    """
    names = chosen(options)
    check_folder(output, f"--output {output}")  # before the work, which may take hours
    datasets = load_datasets(suites)
    loaded = open_model(model, options.device, ANALYZED)
    lengths = subject_lengths(loaded, model, options.seqhw)
    sample = draw_sample(datasets, loaded.transform, options.images, workers=options.workers)
    subject = Subject(loaded, lengths, tuple(datasets), sample, options)
    model_name, pretrained = map(printable, model_names(loaded, model))
    title, command = f"{model_name} {pretrained}".strip(), printable(command or shlex.join(sys.argv))
    bad = f" {len(sample.bad)} of the images drawn could not be read." if sample.bad else ""
    lead = f"{len(sample.images)} images of {printable(', '.join(suites))} at seqhw {', '.join(map(str, lengths))}.{bad}"
    about = {
        "command": command,
        "model": model_name,
        "pretrained": pretrained,
        "suites": list(map(printable, suites)),
        "images": len(sample.images),
        "lengths": [_costs(loaded, length) for length in lengths],
        "bad_samples": sample.bad,
    }
    found: dict[str, Finding] = {}
    require_folder(output, f"--output {output}")
    with evaluating(loaded.model):
        for name in names:
            found[name] = ANALYSES[name](subject)
            print(f"{found[name].title}: {found[name].sentence}", flush=True)
            for file, (figure, _) in found[name].figures.items():
                write_whole(output / f"{file}.png", drawn(figure, dpi=DPI))
            numbers = {key: {"sentence": each.sentence, **each.numbers} for key, each in found.items()}
            text = json.dumps({**about, "analyses": numbers}, indent=1, ensure_ascii=False, allow_nan=False)
            write_whole(output / "analysis.json", text)
            page = render_findings([*found.values()], output, title=title, lead=lead, command=command)
            write_whole(output / "report.html", page)
    return found


def chosen(options: AnalysisOptions) -> list[str]:
    """Return the analyses to run, in the order of ANALYSES.

    Without --only these are all, cue-conflict only if there is a folder for it. Raises UserError for an unknown name.
    """
    if options.images < 1 or options.maps < 1:
        raise UserError(f"--images {options.images}, --maps {options.maps}: give at least one")
    if options.only is None:
        return [name for name in ANALYSES if name != "cue-conflict" or options.cue_conflict is not None]
    for name in options.only:
        if name not in ANALYSES:
            near = difflib.get_close_matches(name, ANALYSES, n=1, cutoff=0.5)
            suggestion = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--only {name}: {suggestion}the analyses are {', '.join(ANALYSES)}")
    if "cue-conflict" in options.only and options.cue_conflict is None:
        raise UserError(f"--only cue-conflict: {cue_conflict.NEEDS_FOLDER}")
    return [name for name in ANALYSES if name in options.only]


def _costs(loaded: EvalModel, length: int) -> dict[str, object]:
    at = geometry(loaded, length)
    return {"seqhw": length, "seq_len": length**2, "patch_size": at.patch_size, "gflops": at.gflops}

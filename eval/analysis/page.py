"""report.html of the analyses: one section each with its sentence, picture, table and method, in the style of `eval`'s page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..report.html import PAGE_BYTES, fill, frame, inline_pictures
from .finding import Finding, Table


def render_findings(findings: Sequence[Finding], about: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    """Return the page. pictures: PNG files by the names of the findings' figures."""
    lengths = ", ".join(str(length["seqhw"]) for length in about["lengths"])
    bad = f" {len(about['bad_samples'])} of the images drawn could not be read." if about["bad_samples"] else ""
    links = (f'<a href="#finding-{i}">{escape(each.title)}</a>' for i, each in enumerate(findings))
    room = PAGE_BYTES // max(1, len(pictures))
    sections = "\n".join(_section(i, each, pictures, room) for i, each in enumerate(findings))
    return frame(
        fill("findings.html", {"sections": sections, "command": escape(about["command"])}),
        title=f"{about['model']} {about['pretrained']}".strip(),
        lead=f"{about['images']} images of {', '.join(about['suites'])} at seqhw {lengths}.{bad}",
        contents=" ".join((*links, '<a href="#command">Command</a>')),
    )


def _section(number: int, finding: Finding, pictures: Mapping[str, Path], room: int) -> str:
    shown = [
        f'<p class="note">{escape(finding.captions[name])}</p>{inline_pictures([(pictures[name], finding.captions[name])], room)}'
        for name in finding.figures
    ]
    return (
        f'<section id="finding-{number}"><h2>{escape(finding.title)}</h2><p>{escape(finding.sentence)}</p>'
        f'<div class="pictures">{"".join(shown)}</div><div class="scroll">{_table(finding.table)}</div>'
        f'<p class="note">{escape(finding.method)}</p></section>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    lines = (
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(text)}</td>" for text in line[1:])}</tr>'
        for line in table.lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

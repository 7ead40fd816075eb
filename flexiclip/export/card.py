"""The result of an export, and the model card that is written next to it.

The card says what the export is, where it comes from, how close it is to the model, and under which licence it may be used. All
facts come from the model folder and the files next to it. If they do not state a fact, the card says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from flexiclip.config.schema import Config, SourceConfig, sides
from flexiclip.errors import UserError
from flexiclip.export.encoder_facts import Origin
from flexiclip.files import read_json
from flexiclip.model_folder import LoadedModel


@dataclass(frozen=True)
class Exported:
    """What an export has written: its files or its folder, and what was written and measured, one line per item."""

    files: tuple[Path, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        """Show the lines as a list in a notebook."""
        return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in self.lines) + "</ul>"


def model_card(origin: Origin, title: str, usage: str, account: Sequence[str]) -> str:
    """Return the model card as Markdown.

    `usage` says how to load the export. `account` lists what was written and measured, one line per item.
    """
    loaded = origin.loaded
    config, provenance = loaded.config, loaded.provenance
    sections = {
        "Use": usage,
        "Written and checked": "\n".join(f"- {line}" for line in account),
        "Source": _bullets(_source(config, provenance, origin)),
        "Input": _bullets(_inputs(loaded)),
        "Data": _bullets(_data(config)),
        "Metrics": _metrics(origin),
        "Licence": _licence(config, provenance),
    }
    return f"# {title}\n\n" + "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items()) + "\n"


def _bullets(facts: dict[str, object]) -> str:
    """Return a list of the facts as Markdown, without those that are None or empty."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value not in (None, ""))


def _source(config: Config, provenance: Mapping[str, object], origin: Origin) -> dict[str, object]:
    shown = {name: value for name, value in provenance.items() if name not in ("format", "tokenizer_sha256", "license")}
    place = {"model folder": origin.folder.resolve(), "left after block": origin.exit}
    return place | {"run": config.run_dir, "seed": config.seed} | shown


def _inputs(loaded: LoadedModel) -> dict[str, object]:
    image, preprocess = loaded.config.model.image, loaded.config.model.preprocess
    facts: dict[str, object] = {
        "images": f"{sides(image.image_size)} pixels, resize {preprocess.resize} ({preprocess.interpolation}), "
        f"mean {list(preprocess.mean)}, std {list(preprocess.std)}",
        "image tower": f"pool {image.pool}, base kernel {sides(image.base_patch_size)}, base grid {sides(image.base_grid)}",
        "trained at seqhw": ", ".join(map(str, loaded.config.trained_seqhw)),
        "embedding": f"{loaded.config.model.embed_dim} components; compare by cosine",
    }
    if loaded.config.model.text is not None:
        tokens = f"{loaded.config.tokenizer.kind}, {loaded.tokenizer.context_length} ids of {loaded.tokenizer.vocab_size}"
        facts["tokens"] = f"{tokens}, padding {loaded.tokenizer.pad_id}, EOS {loaded.tokenizer.eos_id}"
    return facts


def _shards(config: Config) -> list[str]:
    """Return the training shards of the recipe, as a flat list."""
    train = config.data.train
    sources = [train] if isinstance(train, str) else [s.shards if isinstance(s, SourceConfig) else s for s in train]
    return [shard for s in sources for shard in ([s] if isinstance(s, str) else s)]


def _data(config: Config) -> dict[str, object]:
    """Return the training data of the model, as far as the model folder knows it."""
    shards = _shards(config)
    trained = {"training shards": ", ".join(shards) or "not known to the model folder (imported weights)"}
    return {**trained, "captions": ", ".join(config.data.captions)} if shards else dict(trained)


def _metrics(origin: Origin) -> str:
    """Return the rows about this model in a results.json, as a table.

    The file is looked for in the model folder, next to it, and in a folder `eval` next to it.
    """
    if origin.exit is not None:
        return "None: the results next to the model folder are those of the whole tower."
    parent = origin.folder.parent
    places = [folder / "results.json" for folder in (origin.folder, parent, parent / "eval")]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        return (
            "None: there is no results.json in the model folder, next to it, or in a folder `eval` next to it "
            "(`flexiclip eval MODEL --suite NAME --output FOLDER`)."
        )
    try:
        rows = [row for row in json.loads(found.read_text(encoding="utf-8")) if _is_of(row, origin)]
        lines = ["| data set | task | seqhw | columns | metric | value |", "|---|---|---|---|---|---|"]
        for row in rows:
            where = f"| {row['dataset']} | {row['task']} | {row['seqhw']} | {row.get('width') or 'all'} "
            lines += [f"{where}| {name} | {value:.4f} |" for name, value in row["metrics"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"None: {found} is not a table of `flexiclip eval`: {type(error).__name__}: {error}."
    return "\n".join(lines) if rows else f"None: {found} has no row of this model."


def _is_of(row: Mapping[str, object], origin: Origin) -> bool:
    """Return whether a row is about this model and not about another one in the same file.

    Models are told apart by the name of their folder, because the folder may have been moved.
    """
    scored = Path(str(row["pretrained"]))
    return origin.name == (scored.parent.name if scored.name == "model" else scored.name)


def _licence(config: Config, provenance: Mapping[str, object]) -> str:
    """Return the licences of the weights and of the training data, as far as they are stated."""
    stated = provenance.get("license")
    said = [f"Weights: {stated}." if stated else "Weights: the model folder states no licence."]
    for folder in _folders(config):
        described = folder / "dataset.json"  # our builders of data sets write this file
        if described.is_file():
            licence = _stated_licence(described)
            said.append(f"Training data in {folder}: {licence or 'no licence stated'}.")
    return " ".join(said)


def _stated_licence(described: Path) -> str | None:
    """Return the licence that a dataset.json states, or None."""
    try:
        license = read_json(described).get("license")
    except UserError:
        return None
    return str(license) if license else None


def _folders(config: Config) -> list[Path]:
    """Return the local folders of the training shards."""
    return sorted({Path(shard).parent for shard in _shards(config) if "://" not in shard and not shard.startswith("pipe:")})

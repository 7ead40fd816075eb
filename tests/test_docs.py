"""README and docs/ do not promise what is not there: commands parse, blocks of Python run, keys, files and links exist.

tests/test_site.py looks after the links between the pages of docs/, and tests/test_tutorials.py runs the tutorials.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import webdataset
from flexiclip_eval.suites.load import SuiteConfig, load_suite
from kit.page_commands import check, check_mention
from kit.pages import FENCE, PAGES, ROOT, Block, blocks, check_recipe, command_lines, files_of, inline_code, schema_keys
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.config import load
from flexiclip.config.load import parse_yaml
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.model_folder import build_model, save_model

IDS = {"ids": lambda each: str(each.relative_to(ROOT)) if isinstance(each, Path) else str(each)}
FILE_ENDINGS = ("py", "safetensors")
RUN_ELSEWHERE = ("# embed.py\n", "# embed_text.py\n")
"""The first lines of the blocks that tests/export/test_export_guide.py runs, where torch cannot be imported."""
PREPARED = {
    "docs/guides/export.md": "import json, onnxruntime; session = onnxruntime.InferenceSession('encoders/image-6.onnx')",
}
"""What a page takes for granted before its first block of Python."""


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_every_block_says_what_it_is(page: Path) -> None:
    """So that no command is missed, and the site colours each block as what it is."""
    known = ("bash", "python", "yaml", "json", "text")
    assert [str(block) for block in blocks(page) if block.language not in known] == []


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "bash")], **IDS)
def test_every_command_of_a_block_parses(block: Block) -> None:
    found = list(command_lines(block))
    assert found, "an empty block"
    for words in found:
        check(words, block.page)


@pytest.mark.parametrize(
    "line",
    [
        "flexiclip trian debug",
        "flexiclip train debug train.stepps=3",
        "flexiclip train debug train.steps=soon",
        "flexiclip train nonesuch",
        "flexiclip eval MODEL --suite nonesuch",
        "flexiclip eval MODEL --suite openmoji --seqwh 3",
        "torchrun --nproc-per-node 8 -m flexiclip train debug model.widht=3",
        "scripts/quickstart.sh train.stepps=3",
        "scripts/nonesuch.sh",
        "scripts/bench.sh nonesuch",
        "scripts/docs.sh --sevre",
        "scripts/paper.sh curricula --sedes 1",
        "scripts/launch/slurm.sh RECIPE train.stepps=3",
        "scripts/fuzz.sh index --minuets 10",
        "python scripts/nonesuch.py",
        "python -m scripts.nonesuch",
        "python -m scripts.paper --sedes 1",
        "python -m scripts.bench.subjects.losses --bathces 512",
        "flexiclip compare a=b --ouput x.png",
        "pip install -e '.[nonesuch]'",
        "sbatch scripts/launch/nonesuch.sh",
        "frobnicate",
    ],
)
def test_a_command_that_could_not_run_is_found(line: str) -> None:
    block = Block(PAGES[0], 1, "bash", "", line)
    (words,) = command_lines(block)
    with pytest.raises((AssertionError, ValueError, OSError)):
        check(words, block.page)


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_what_sentences_name_exists(page: Path) -> None:
    """Commands, options, overrides, keys of recipes and scripts between single backticks."""
    keys = schema_keys()
    sections = {key.partition(".")[0] for key in keys if "." in key}
    for text in inline_code(page):
        if text.startswith("flexiclip "):
            check_mention(text)
        elif text.startswith("python -m scripts."):
            check(text.split(), page)
        elif script := re.match(r"scripts/[\w/.]+", text):
            assert (ROOT / script[0]).exists(), f"{page}: {text}"
        elif key := re.match(r"([a-z]+(?:\.[a-z_]+)+)(?=$|[:=])", text):
            ending = key[1].rpartition(".")[2] in (
                "py",
                "yaml",
                "json",
                "jsonl",
                "md",
                "safetensors",
                "sh",
                "index",
                "onnx",
                "npy",
            )
            known = key[1].partition(".")[0] not in sections or key[1] in keys or key[1].startswith("engine.deepspeed")
            assert ending or known, f"{page}: {text} is not a key of a recipe"


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "yaml")], **IDS)
def test_recipes_and_suites_on_pages_load(block: Block, tmp_path: Path) -> None:
    """A file as it is; a part of a recipe for its keys and types."""
    data = parse_yaml(block.text, str(block))
    path = tmp_path / (block.title or "part.yaml")
    path.write_text(block.text, encoding="utf-8")
    if "datasets" in data:
        assert isinstance(load_suite(str(path)), SuiteConfig)
    elif block.title:
        load(path)
    else:
        for section, value in data.items():
            check_recipe("RECIPE", [f"{section}={json.dumps(value)}"], block.page)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those between the pages of docs/ are checked where the site is built."""
    text = FENCE.sub("", PAGES[0].read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        target = ROOT / path
        assert target.is_file(), link
        assert not anchor or anchor in map(slug, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def test_pages_that_the_code_names_exist() -> None:
    """In comments, messages, recipes, scripts and tests. CHANGELOG.md is left out: it names pages where they were at the time."""
    folders = ("flexiclip", "eval", "recipes", "scripts", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", ".yaml", ".md")]
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in [*files, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for name in re.findall(r"(?<![\w/])docs/[\w/]+\.md", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 30
    assert [each for each in sorted(named) if not (ROOT / each[1]).is_file()] == []


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    """docs/index.md leads to them too."""
    text, index = PAGES[0].read_text(encoding="utf-8"), (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for page in PAGES[1:]:
        if page.name != "index.md":
            assert f"({page.relative_to(ROOT)})" in text, f"README.md does not name {page}"
            assert f"({page.relative_to(ROOT / 'docs')})" in index, f"docs/index.md does not name {page}"


def picture(number: int, side: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").rotate(40 * number).resize((side, side)).convert("RGBA").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages say is there before their Python: a small model where they name one, a shard, a picture and an encoder."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "cat.png").write_bytes(picture(0))
    (folder / "data" / "openmoji").mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "data" / "openmoji" / "heldout-0000.tar"), encoder=False) as shard:
        for number in range(12):
            category = ("Animals & Nature", "Food & Drink", "Travel & Places", "Flags")[number % 4]
            facts = {"name": f"thing number {number}", "category": category}
            sample = {"png": picture(number), "txt": facts["name"].encode(), "json": json.dumps(facts).encode()}
            shard.write({"__key__": f"{number:04}", **sample})
    words = [f"a {kind} of number {number}" for kind in ("picture", "thing", "flag", "face") for number in range(12)]
    path = train_sentencepiece(words, folder / "words.model", 50, lowercase=True)
    config = load("debug", ["patch.seqhw=[3, 6]", "model.text.width=16", f"tokenizer.path={path}", "tokenizer.context_length=8"])
    model = build_model(config)
    for run in ("first", "openmoji_flexilit", "shapes"):
        save_model(folder / "runs" / run, model, step=1)
    image = folder / "encoders" / "image-6.onnx"
    export = ["export", "image", str(folder / "runs" / "first"), "--seqhw", "6", "--normalize-inside"]
    assert main([*export, "--output", str(image)]) == 0
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], **IDS)
def test_every_python_block_runs(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page share their names; the files that a page shows are there."""
    monkeypatch.chdir(place)
    for name, block in files_of(page).items():
        Path(name).write_text(block.text, encoding="utf-8")
    names: dict[str, object] = {"__name__": "page"}
    exec(PREPARED.get(str(page.relative_to(ROOT)), ""), names)
    for block in blocks(page, "python"):
        if block.text.startswith(RUN_ELSEWHERE):
            continue
        source = "\n" * block.line + block.text  # a traceback names the page and its line
        exec(compile(source, str(page), "exec"), names)

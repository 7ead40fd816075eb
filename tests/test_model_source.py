"""The grammar of MODEL: each kind, each ending, what is not a model, and the list of what a caller accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexiclip.errors import UserError
from flexiclip.model_source import (
    FLEXES,
    LOADED,
    Accepted,
    Kind,
    ModelSource,
    is_model_folder,
    parse_model,
    split_label,
    split_open_clip,
)

EVERYTHING = Accepted(tuple(Kind), exits=True, flexes=True)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the current one, with a model of every kind."""
    for name in ("model_folder/model.safetensors", "model_folder/config.yaml", "run/model/model.safetensors"):
        touch(tmp_path / name)
    for name in ("run/model/config.yaml", "run/config.yaml", "oc/open_clip_config.json", "out/m-5.onnx", "out/m-8.onnx"):
        touch(tmp_path / name)
    touch(tmp_path / "hf/config.json", json.dumps({"model_type": "clip"}))
    touch(tmp_path / "timm/config.json", json.dumps({"architecture": "vit_tiny_patch16_224"}))
    for name in ("big.npz", "weights.pt", "out/n-5.onnx", "out/notes.txt", "shards/model.safetensors"):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("model_folder", Kind.MODEL, "model_folder"),
        ("run", Kind.MODEL, "run/model"),
        ("run/model", Kind.MODEL, "run/model"),
        ("hf", Kind.TRANSFORMERS, "hf"),
        ("timm", Kind.TIMM, "timm"),
        ("big.npz", Kind.BIG_VISION, "big.npz"),
        ("weights.pt", Kind.WEIGHTS, "weights.pt"),
        ("shards", Kind.WEIGHTS, "shards"),
        ("out", Kind.ONNX, "out"),
    ],
)
def test_a_path_is_of_one_kind(text: str, kind: Kind, path: str, there: Path) -> None:
    assert parse_model(text, EVERYTHING) == ModelSource(
        text, kind, Path(path), files=tuple(sorted(Path("out").glob("*.onnx"))) if kind is Kind.ONNX else ()
    )
    absolute = parse_model(str(there / text), EVERYTHING)
    assert (absolute.kind, absolute.path) == (kind, there / path)


def test_exported_files_are_those_of_a_folder_or_of_a_prefix(there: Path) -> None:
    for text, names in (("out", ["m-5", "m-8", "n-5"]), ("out/m", ["m-5", "m-8"]), ("out/n-5.onnx", ["n-5"])):
        assert [file.stem for file in parse_model(text, EVERYTHING).files] == names
    touch(there / "hf" / "text.onnx")
    assert parse_model("hf", EVERYTHING).kind is Kind.TRANSFORMERS, "a folder of another library may have .onnx files too"
    (there / "out" / "o.onnx").mkdir()
    with pytest.raises(UserError, match=r"^out/o is not a model: there is no such file or folder"):
        parse_model("out/o", EVERYTHING)


@pytest.mark.parametrize(
    ("text", "name", "pretrained"),
    [
        ("ViT-B-32", "ViT-B-32", None),
        ("ViT-B-32/openai", "ViT-B-32", "openai"),
        ("ViT-B-32/", "ViT-B-32", None),
        ("ViT-B-32/a/b.pt", "ViT-B-32", "a/b.pt"),
        ("ViT-B-32//a/b.pt", "ViT-B-32", "/a/b.pt"),
        ("hf-hub:org/repo", "hf-hub:org/repo", None),
        ("local-dir:a/b", "local-dir:a/b", None),
    ],
)
def test_names_of_open_clip(text: str, name: str, pretrained: str | None) -> None:
    assert split_open_clip(text) == (name, pretrained)
    found = parse_model(f"open_clip:{text}", EVERYTHING)
    assert (found.kind, found.name, found.pretrained) == (Kind.OPEN_CLIP, name, pretrained)


def test_a_folder_of_open_clip_has_open_clips_own_name(there: Path) -> None:
    found = parse_model("oc", EVERYTHING)
    assert (found.kind, found.name, found.pretrained, found.path) == (Kind.OPEN_CLIP, "local-dir:oc", None, Path("oc"))
    assert parse_model("open_clip:local-dir:oc", EVERYTHING).path == Path("oc")


@pytest.mark.parametrize(
    ("ending", "exit", "flex"),
    [("", None, None), ("+exit2", 2, None), ("+pi", None, "pi"), ("+exit12+norm", 12, "norm"), ("+exit0", 0, None)],
)
def test_endings(ending: str, exit: int | None, flex: str | None, there: Path) -> None:
    found = parse_model(f"run{ending}", EVERYTHING)
    assert (found.text, found.path, found.exit, found.flex) == (f"run{ending}", Path("run/model"), exit, flex)


def test_every_flex_is_an_ending_of_every_kind(there: Path) -> None:
    for flex in FLEXES:
        for text in ("run", "oc", "hf", "timm", "big.npz", "open_clip:ViT-B-16/openai"):
            found, plain = parse_model(f"{text}+{flex}", EVERYTHING), parse_model(text, EVERYTHING)
            assert (found.kind, found.path, found.name, found.pretrained) == (
                plain.kind,
                plain.path,
                plain.name,
                plain.pretrained,
            )


def test_a_path_that_exists_is_not_split(there: Path) -> None:
    (there / "run").rename(there / "run+pi")
    assert parse_model("run+pi", EVERYTHING).flex is None
    assert parse_model("run+pi+pi", EVERYTHING).flex == "pi"
    (there / "run+pi").rename(there / "run+exit2")
    assert parse_model("run+exit2", EVERYTHING).exit is None
    assert parse_model("run+exit2+exit3", EVERYTHING).exit == 3
    assert parse_model("run+exit2+exit3+pi", EVERYTHING).path == Path("run+exit2/model")


@pytest.mark.parametrize(
    "text", ["nowhere", "nowhere.npz", "nowhere+pi", "run+b", "run+exit", "run+exit12345", "+pi", "", "out/x"]
)
def test_what_is_nowhere(text: str, there: Path) -> None:
    with pytest.raises(UserError) as error:
        parse_model(text, LOADED)
    accepted = "a model folder or a run folder, optionally with +exitN"
    assert str(error.value) == f"{text} is not a model: there is no such file or folder; give {accepted}".strip()


def test_what_has_no_configuration(there: Path) -> None:
    (there / "model_folder" / "config.yaml").unlink()
    for text in ("weights.pt", "model_folder"):
        with pytest.raises(UserError, match=rf"^{text} is not a model: it lacks model\.safetensors and config\.yaml, .*; give"):
            parse_model(text, LOADED)
    assert not is_model_folder(there / "model_folder")
    assert is_model_folder(there / "run" / "model")
    assert not is_model_folder(there / "run")


def test_a_kind_that_is_not_accepted_is_refused_with_the_list(there: Path) -> None:
    with pytest.raises(UserError) as error:
        parse_model("hf", Accepted((Kind.MODEL, Kind.TIMM)), "model.image.init")
    accepted = "a model folder or a run folder, a folder of timm"
    assert str(error.value) == f"model.image.init=hf: a folder of transformers is not accepted here; give {accepted}"


def test_an_ending_that_is_not_accepted_is_refused(there: Path) -> None:
    for text, accepted, ending in (
        ("run+exit2", Accepted((Kind.MODEL,), flexes=True), r"\+exit2"),
        ("run+pi", LOADED, r"\+pi"),
        ("run+exit2+pi", LOADED, r"\+exit2\+pi"),
    ):
        with pytest.raises(UserError, match=rf"the ending {ending} is not accepted here; give a model folder or a run folder"):
            parse_model(text, accepted)
    with pytest.raises(UserError, match=r"^hf\+exit2: only a model folder or a run folder has exits; leave the ending \+exit2"):
        parse_model("hf+exit2", EVERYTHING)


def test_accepted_as_a_text() -> None:
    assert str(Accepted((Kind.TIMM,))) == "a folder of timm"
    flexes = "+pi or +bilinear or +bicubic or +area or +norm"
    assert str(Accepted((Kind.TIMM, Kind.BIG_VISION), exits=True, flexes=True)) == (
        f"a folder of timm, a .npz file of big_vision, optionally with +exitN or {flexes}"
    )


def test_a_damaged_config_is_named(there: Path) -> None:
    (there / "hf" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"hf/config\.json: not a JSON file"):
        parse_model("hf", EVERYTHING)


@pytest.mark.parametrize(
    ("text", "label", "model"),
    [
        ("mine=run", "mine", "run"),
        ("trained at 6 = run+pi", "trained at 6", " run+pi"),
        ("a=b=c", "a", "b=c"),
        ("open_clip:NAME/a=b", None, "open_clip:NAME/a=b"),
        ("runs/lr=0.1", None, "runs/lr=0.1"),
        ("=run", None, "=run"),
        ("lr=0.1", None, "lr=0.1"),  # a folder that is there
        ("lr=0.1+pi", None, "lr=0.1+pi"),
        ("x=lr=0.1", "x", "lr=0.1"),
        ("run", None, "run"),
    ],
)
def test_a_label_is_before_the_model(text: str, label: str | None, model: str, there: Path) -> None:
    (there / "lr=0.1").mkdir()
    assert split_label(text) == (label, model)


@pytest.mark.parametrize(
    "text",
    [
        "openai/clip-vit-base-patch32",
        "hf-hub:openai/clip-vit-base-patch32",
        "https://huggingface.co/openai/clip-vit-base-patch32/",
    ],
)
def test_a_name_on_the_hub_leads_to_the_command_that_fetches_it(text: str, there: Path) -> None:
    with pytest.raises(UserError) as caught:
        parse_model(text, EVERYTHING)
    message, name = str(caught.value), "openai/clip-vit-base-patch32"
    assert f"`flexiclip import hf-hub:{name} --format open_clip --output clip-vit-base-patch32`" in message
    assert f"`hf download {name} --local-dir clip-vit-base-patch32`" in message


@pytest.mark.parametrize("text", ["run/missing", "nothing", "a/b/c", "../x"])
def test_a_path_is_not_taken_for_a_name_on_the_hub(text: str, there: Path) -> None:
    with pytest.raises(UserError, match="is not a model: there is no such file or folder; give") as caught:
        parse_model(text, EVERYTHING)
    assert "hf download" not in str(caught.value)

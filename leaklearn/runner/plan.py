"""Which notebooks run with which parameters, all of it checked before the first one starts.

A preset is a folder of `params/` whose YAML files hold only what differs from a notebook's own defaults; the preset
`smoke` is those defaults. papermill merely logs a parameter that it does not know, so unknown names, wrong types and
values out of their range (`leaklearn.ranges`) are refused here.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite, nan
from pathlib import Path
from typing import ClassVar

import yaml

from leaklearn import parameters, ranges
from leaklearn.files import Paths
from leaklearn.parameters import Parameter

DEFAULTS = "smoke"
READS_OTHERS = "reads-other-notebooks"
"""Tag of a cell that reads what other notebooks have written: its notebook runs after all others."""

PLAIN_TYPES = {"str": str, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Job:
    """One notebook, the parameters it is given, `preset` among them, and whether it reads other notebooks' results."""

    notebook: str
    parameters: dict[str, object] = field(default_factory=dict)
    reads_others: bool = False


def presets(paths: Paths) -> list[str]:
    """Names of the presets: `smoke`, and the folders of `params/` that are not hidden."""
    folders = sorted(path.name for path in paths.params.glob("[!.]*") if path.is_dir())
    return [DEFAULTS, *(name for name in folders if name != DEFAULTS)]


def plan(preset: str, only: Iterable[str], assignments: Iterable[str], paths: Paths) -> list[Job]:
    """The notebooks to run, in order, with their parameters.

    `only` holds names of notebooks, or beginnings that fit one notebook, such as `"02"`; all notebooks when empty. Each
    of the `assignments`, `name=value`, goes to every chosen notebook that has the parameter, over what the preset says;
    one that a shell has cut at spaces, as `seeds=[0,` and `1]`, is put together again. The first preset, notebook,
    file, name or value that cannot be used is a ValueError that says what could be.
    """
    if preset not in presets(paths):
        raise ValueError(f"unknown preset {preset!r}; {nearest(preset, presets(paths))}")
    if not ranges.NAME.fullmatch(preset):
        folder = _short(paths.params / preset, paths)
        raise ValueError(f"{folder} cannot be a preset's folder: use letters, digits, '_' and '-' only")
    names = paths.notebook_names()
    if not names:
        raise ValueError(f"there are no notebooks in {paths.notebooks}")
    chosen = sorted({_notebook(name, names) for name in only}) or names
    for file in sorted((paths.params / preset).glob("*.*")):
        if file.suffix.lower() in (".yaml", ".yml") and file.suffix != ".yaml":
            raise ValueError(f"{_short(file, paths)} is not read: rename it to {file.stem}.yaml")
        if file.suffix == ".yaml" and file.stem not in names:
            raise ValueError(f"{_short(file, paths)} belongs to no notebook; {nearest(file.stem, names)}")
    declared = {name: parameters.read(paths.notebook(name)) for name in chosen}
    values = {name: _from_preset(preset, name, declared[name], paths) for name in chosen}
    for assignment in re.split(r"\s+(?=[A-Za-z_]\w*=)", " ".join(assignments).strip()):
        if assignment:
            _assign(assignment, declared, values)
    for name in chosen:
        defaults = {parameter.name: parameter.default for parameter in declared[name].values()}
        ranges.check(name, defaults | values[name])
    return [Job(name, values[name], bool(parameters.tagged(paths.notebook(name), READS_OTHERS))) for name in chosen]


def check(parameter: Parameter, value: object, where: str) -> None:
    """Refuse a value that does not fit the type its parameter declares; an int fits a float, a bool fits no number."""
    if _fits(value, ast.parse(parameter.type, mode="eval").body):
        return
    hint = ""
    if "float" in parameter.type and _hides_number(value):
        hint = "; a float in YAML needs a dot, 1.0e-3 rather than 1e-3, and no quotes"
    given = f"{ranges.shortened(value)} ({type(value).__name__})"
    raise ValueError(f"{where}: {parameter.name} must be {parameter.type}, not {given}{hint}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """`did you mean ...?` for a near miss, otherwise the list of what is valid."""
    valid = list(valid)
    near = get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid) or 'none'}"


def _notebook(name: str, names: list[str]) -> str:
    """The notebook called `name`, or the only one whose name begins with it."""
    if name in names:
        return name
    matches = [full for full in names if name and full.startswith(name)]
    if len(matches) != 1:
        raise ValueError(f"unknown notebook {name!r}; {nearest(name, matches or names)}")
    return matches[0]


def _from_preset(preset: str, notebook: str, declared: Mapping[str, Parameter], paths: Paths) -> dict[str, object]:
    """Checked contents of `params/<preset>/<notebook>.yaml`, with `preset` added."""
    file = paths.params / preset / f"{notebook}.yaml"
    values = _load(file, paths) if file.is_file() else {}
    for name, value in values.items():
        if name not in declared:
            raise ValueError(f"{_short(file, paths)}: unknown parameter {name!r}; {nearest(str(name), declared)}")
        check(declared[name], value, _short(file, paths))
    if values.get("preset", preset) != preset:
        raise ValueError(f"{_short(file, paths)}: preset must be {preset!r} like its folder, not {values['preset']!r}")
    return {**values, "preset": preset} if "preset" in declared else values


def _load(file: Path, paths: Paths) -> dict:
    try:
        values = yaml_value(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{_short(file, paths)} cannot be read as YAML: {error}") from error
    if values is None:  # a file of comments only
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{_short(file, paths)} must hold lines `name: value`, not a {type(values).__name__}")
    return values


def _assign(assignment: str, declared: dict[str, dict[str, Parameter]], values: dict[str, dict[str, object]]) -> None:
    """Enter one `name=value` into the parameters of each notebook that declares the name."""
    name, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"--set takes name=value, not {assignment!r}")
    if name == "preset":
        raise ValueError("--set cannot change preset; use --preset")
    takers = [notebook for notebook in declared if name in declared[notebook]]
    if not takers:
        known = dict.fromkeys(known for notebook in declared.values() for known in notebook)
        raise ValueError(f"--set: no chosen notebook has a parameter {name!r}; {nearest(name, known)}")
    for notebook in takers:
        parameter = declared[notebook][name]
        try:
            value = text if parameter.type == "str" else _value(text)
        except ValueError as error:
            raise ValueError(f"--set: {name} must be {parameter.type}, and {text[:80]!r} is none: {error}") from None
        check(parameter, value, f"--set for {notebook}")
        values[notebook][name] = value


def _value(text: str) -> object:
    """What a text on the command line stands for: a Python literal (`1e-3`, `[1, 2]`), else YAML (`true`, `[a, b]`)."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last two of deep brackets
        return yaml_value(text)


class Loader(yaml.SafeLoader):
    """YAML of which nothing has two meanings: no key twice, no octal or sexagesimal number, no date, no reference."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node, index: object) -> yaml.Node:
        """Refuse references, by which ten lines become gigabytes."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor} refers to another value; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuse a key that stands there twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]} is given twice")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """The number that Python would read too, and a finite one."""
        text = node.value.replace("_", "")
        try:
            number = int(text, 0) if node.tag.endswith(":int") else float(text)
        except ValueError:
            number = nan
        if not isfinite(number):
            raise yaml.YAMLError(
                f"{node.value[:40]} is no plain finite number; write it in decimal digits, or in quotes"
            )
        return number


for _kind in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", Loader.construct_number)


def yaml_value(text: str) -> object:
    """The value of a YAML text; a ValueError says in one line what is wrong with it."""
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except RecursionError:
        raise ValueError("its brackets are too deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _fits(value: object, kind: ast.expr) -> bool:
    """Whether `value` is of the type that an annotation's syntax tree names."""
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return _fits(value, kind.left) or _fits(value, kind.right)
    if isinstance(kind, ast.Constant) and kind.value is None:
        return value is None
    if isinstance(kind, ast.Subscript) and getattr(kind.value, "id", "") == "list":
        return isinstance(value, list) and all(_fits(item, kind.slice) for item in value)
    name = getattr(kind, "id", None)
    if name in ("int", "float"):
        return isinstance(value, int | float if name == "float" else int) and not isinstance(value, bool)
    if name not in PLAIN_TYPES:
        known = "int, float, str, bool, list[...] or None"
        raise ValueError(f"a parameter cannot be of type {ast.unparse(kind)}; use {known}")
    return isinstance(value, PLAIN_TYPES[name])


def _hides_number(value: object) -> bool:
    """Whether a string in `value` reads as a number."""
    if isinstance(value, list):
        return any(_hides_number(item) for item in value)
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def _short(file: Path, paths: Paths) -> str:
    return str(file.relative_to(paths.root))

"""What a notebook's `parameters` cell declares: names, types, defaults and help.

The cell holds one literal a line, `name: type = value  # help`. It is parsed rather than executed, so that settings
can be checked against it before the first notebook starts.
"""

import ast
import json
from dataclasses import dataclass
from pathlib import Path

TAG = "parameters"


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    type: str  # the annotation as written, such as "list[int]"; the type of the default where there is none
    default: object  # the literal's value
    help: str  # the comment at the end of the line; empty where there is none


def read(notebook: Path) -> dict[str, Parameter]:
    """Parameters of a notebook, by name, in the order of its cell; empty when no cell is tagged `parameters`."""
    sources = tagged(notebook, TAG)
    return parse(sources[0], where=notebook.name) if sources else {}


def tagged(notebook: Path, tag: str) -> list[str]:
    """Source texts of a notebook's cells that have a tag; a ValueError if the notebook cannot be read."""
    try:  # as JSON: importing nbformat takes longer than all the rest of this package
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if tag in cell["metadata"].get("tags", [])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read the notebook {notebook}: {error!r}") from error


def code(notebook: Path) -> str:
    """What a notebook computes: its code cells one after another, without that of the parameters."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    chosen = [cell for cell in cells if cell["cell_type"] == "code" and TAG not in cell["metadata"].get("tags", [])]
    return "\n".join("".join(cell["source"]) for cell in chosen)


def parse(source: str, where: str = "the parameters cell") -> dict[str, Parameter]:
    """Parameters in the source text of a parameters cell; `where` names it in errors.

    A statement that is not an assignment of a literal to a name is a ValueError.
    """
    lines = source.splitlines()
    found: dict[str, Parameter] = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        message = f"{where}: the parameters cell is not valid Python: {error.msg}, line {error.lineno}"
        raise ValueError(message) from error
    for statement in statements:
        try:
            target, value = _assignment(statement)
            default = ast.literal_eval(value)
        except ValueError:
            line = lines[statement.lineno - 1].strip()
            raise ValueError(f"{where}: a parameter is written `name: type = literal  # help`, not `{line}`") from None
        annotation = statement.annotation if isinstance(statement, ast.AnnAssign) else None
        kind = ast.unparse(annotation) if annotation else type(default).__name__
        comment = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
        found[target] = Parameter(target, kind, default, comment.strip().lstrip("#").strip())
    return found


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr]:
    """Name and value of `name: type = value` or `name = value`."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return statement.target.id, statement.value
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    raise ValueError("not an assignment to a name")

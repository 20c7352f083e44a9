"""Writes docs/reference.md from the signatures and docstrings of HLO: `python -m docs.generate`, or `nox -s docs`."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct

import hlo
from hlo import contracts, errors, hookspecs, records, testing
from hlo.contracts import Encoder, Engine, EngineActivity, EngineInfo, EngineOptions
from hlo.records import Finding
from hlo.testing import catchment, conformance

FILE = Path(__file__).with_name("reference.md")
WIDTH = 100

_INTRO = """\
# Reference

What the author of a plugin can use, from HLO's own signatures and docstrings. Written by `nox -s docs`; do not edit it.
[The tutorial](tutorial.md) shows how it goes together.

A plugin is a package with an entry point in the group `hlo` that names a module; the hooks stand in that module:

```toml
[project.entry-points.hlo]
joints = "hlo_joints"
```
"""
_TESTING = """\
In the top `conftest.py`: `pytest_plugins = ["hlo.testing.fixtures"]`. The fakes are in `hlo.testing`, `examine` and
`Examination` in `hlo.testing.conformance`, `Asked` in `hlo.testing.catchment`, `Finding` in `hlo.records`."""
_DECLARED = ("Specialty", "Adapter", "Embeddings", "Sampling")
_ASKED = ("Question", "SamplingOverrides", "Screening", "Notice", "Route", "Score", "Answer", "Usage", "Timings")
_GENERATED = ("Prompt", "AdapterVersion", "Delta")
_FAKES = (testing.HashingEncoder, testing.CharacterTokenizer, testing.EchoEngine)


class Entry(Struct, frozen=True):
    """Something with a heading of its own; `body` is Markdown."""

    heading: str
    body: str


class Section(Struct, frozen=True):
    """Entries that belong together."""

    heading: str
    entries: tuple[Entry, ...]
    text: str = ""


class _Source:
    """Stands in a signature for an annotation or a default, as it is written in the source."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def render() -> str:
    """The whole reference, as Markdown."""
    sections = tuple(_sections())
    entries = [entry.heading for section in sections for entry in section.entries]
    lines = [_INTRO]
    for section in sections:
        inside = ", ".join(f"[{one.heading}](#{slug(one.heading)})" for one in section.entries)
        lines.append(f"- [{section.heading}](#{slug(section.heading)}): {inside}")
    for section in sections:
        lines += ["", f"## {section.heading}"]
        if section.text:
            lines += ["", _linked(section.text, entries)]
        for entry in section.entries:
            others = [heading for heading in entries if heading != entry.heading]
            lines += ["", f"### {entry.heading}", "", _linked(entry.body, others)]
    return "\n".join(lines) + "\n"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def main() -> None:
    """Write the reference."""
    FILE.write_text(render(), encoding="utf-8")


def _sections() -> Iterator[Section]:
    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("hlo_")]
    yield Section("Hooks", tuple(map(_function, hooks)), _markdown(hookspecs.__doc__))
    marker = Entry("hookimpl", "Marks a function as the implementation of the hook whose name it bears.")
    declared = (*_records(_DECLARED), _function(hlo.read_examples), marker)
    yield Section("What a plugin declares", declared, "All from `hlo`.")
    aliases = [f"{name} = {_source(getattr(records, name))}" for name in ("RouteStatus", "FinishReason")]
    yield Section("Questions and answers", tuple(_records(_ASKED)), f"All from `hlo`.\n\n{_code(aliases)}")
    told = (_record(EngineOptions), _record(EngineInfo), _record(EngineActivity))
    engine = (_class(Encoder), _class(Engine), *told, _start_engine())
    yield Section(
        "Encoders and engines",
        (*engine, *_records(_GENERATED)),
        f"{_markdown(contracts.__doc__)}\nFrom `hlo.contracts`; `Prompt`, `AdapterVersion` and `Delta` from `hlo`.",
    )
    examination = (_record(conformance.Examination), _record(Finding), _record(catchment.Asked))
    examined = (_function(conformance.examine), *examination)
    yield Section("Testing", (*_fixtures(), *examined, *map(_class, _FAKES)), _TESTING)
    tree = "\n".join(["```text", "HLOError", *_tree(errors.HLOError), "```"])
    yield Section(
        "Errors", tuple(map(_error, _errors())), f"`HLOError` from `hlo`, all others from `hlo.errors`.\n\n{tree}"
    )


def _source(alias: object) -> str:
    return _quoted(str(alias).removeprefix("typing."))


def _records(names: Iterable[str]) -> Iterator[Entry]:
    for name in names:
        yield _record(getattr(records, name))


def _record(cls: type[Struct]) -> Entry:
    """A record: its fields as they are declared, its docstring, its methods."""
    lines = [f"class {cls.__name__}:"]
    for field in msgspec.structs.fields(cls):
        default = f" = {_default(field)}" if not field.required else ""
        lines.append(f"    {field.name}: {_quoted(cls.__annotations__[field.name])}{default}")
    return Entry(cls.__name__, "\n\n".join([_code(lines), _markdown(cls.__doc__), *_members(cls)]))


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default if field.default is not NODEFAULT else field.default_factory()
    if isinstance(value, Mapping):
        return repr(dict(value))
    if isinstance(value, Struct) and value == type(value)():
        return f"{type(value).__name__}()"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _quoted(source: str) -> str:
    """Source with the quotes that a formatter writes; the interpreter's own are single."""
    return source.replace("'", '"')


def _class(cls: type) -> Entry:
    """A protocol or a fake: how it is made, its docstring, its members."""
    made = [] if getattr(cls, "_is_protocol", False) else list(_made(cls))
    return Entry(cls.__name__, "\n\n".join([*made, _markdown(cls.__doc__), *_members(cls)]))


def _made(cls: type) -> Iterator[str]:
    """The call that makes an instance, where the class says how."""
    function = vars(cls).get("__init__")
    if function is not None:
        yield _code([_signature(cls.__name__, function)])


def _members(cls: type) -> Iterator[str]:
    """The public methods and properties of a class, each with its docstring."""
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            returned = inspect.signature(value.fget).return_annotation if value.fget else ""
            yield f"{_code([f'{name}: {returned}'])}\n\n{_markdown(value.__doc__)}"
        elif inspect.isfunction(value):
            yield f"{_code([_signature(name, value)])}\n\n{_markdown(value.__doc__)}"


def _function(function: Callable[..., Any]) -> Entry:
    name = function.__name__
    return Entry(name, f"{_code([_signature(name, function)])}\n\n{_markdown(function.__doc__)}")


def _signature(name: str, function: Callable[..., Any]) -> str:
    """`def name(…) -> …`, with annotations as in the source; `__init__` as the call that makes an instance."""
    signature = inspect.signature(function)
    parameters = [_parameter(one) for one in signature.parameters.values() if one.name != "self"]
    made = function.__name__ == "__init__"
    returned = inspect.Signature.empty if made else _Source(_quoted(str(signature.return_annotation)))
    start = "async def " if inspect.iscoroutinefunction(function) else "" if made else "def "
    told = f"{start}{name}{inspect.Signature(parameters, return_annotation=returned)}"
    if len(told) <= WIDTH:
        return told
    inside = [str(one) for one in parameters]
    keywords = [n for n, one in enumerate(parameters) if one.kind is one.KEYWORD_ONLY]
    if keywords:
        inside.insert(keywords[0], "*")
    arrow = "" if made else f" -> {returned!r}"
    return "\n".join([f"{start}{name}(", *(f"    {one}," for one in inside), f"){arrow}"])


def _parameter(one: inspect.Parameter) -> inspect.Parameter:
    default = one.default
    if inspect.isfunction(default):
        default = _Source("…")  # its repr has an address in memory
    elif isinstance(default, str):
        default = _Source(json.dumps(default))
    return one.replace(annotation=_Source(_quoted(str(one.annotation))), default=default)


def _start_engine() -> Entry:
    """The type of what `hlo_engine` returns; a type alias keeps its docstring in the source alone."""
    nodes = ast.parse(inspect.getsource(contracts)).body
    for node, below in pairwise(nodes):
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "StartEngine"
            and isinstance(below, ast.Expr)
        ):
            doc = ast.literal_eval(below.value)
            return Entry("StartEngine", f"{_code([ast.unparse(node)])}\n\n{_markdown(doc)}")
    raise LookupError("hlo.contracts declares no StartEngine with a docstring.")


def _fixtures() -> Iterator[Entry]:
    """Every fixture, from the source: importing it would need pytest."""
    source = Path(testing.__file__).with_name("fixtures.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and any(
            "pytest.fixture" in ast.unparse(one) for one in node.decorator_list
        ):
            returned = ast.unparse(node.returns) if node.returns else "None"
            body = f"{_code([f'{node.name}: {returned}'])}\n\n{_markdown(ast.get_docstring(node))}"
            yield Entry(f"Fixture {node.name}", body)


def _errors() -> list[type[errors.HLOError]]:
    """All errors, in the order in which they are defined."""
    return [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.HLOError)]


def _error(cls: type[errors.HLOError]) -> Entry:
    return Entry(cls.__name__, "\n\n".join([*_made(cls), _markdown(cls.__doc__)]))


def _tree(cls: type[errors.HLOError], indent: str = "") -> Iterator[str]:
    """The lines that draw the errors below one."""
    below = [one for one in _errors() if cls in one.__bases__]
    for one in below:
        last = one is below[-1]
        yield f"{indent}{'└── ' if last else '├── '}{one.__name__}"
        yield from _tree(one, indent + ("    " if last else "│   "))


def _markdown(doc: str | None) -> str:
    """A docstring as Markdown: what is indented is code."""
    if not doc:
        raise LookupError("Every name in the reference has a docstring.")
    parts = re.split(r"\n\n(?=\S)|\n\n(?=    )", inspect.cleandoc(doc))
    told: list[str] = []
    for part in parts:
        if part.startswith("    "):
            told.append(_code(inspect.cleandoc(part).splitlines()))
        else:
            told.append(part)
    return "\n\n".join(told)


def _code(lines: Iterable[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _linked(text: str, headings: Iterable[str]) -> str:
    """Names between backquotes become links to their entries; code blocks stay."""
    known = {heading: slug(heading) for heading in headings}
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)

    def link(match: re.Match[str]) -> str:
        name = match[1].removeprefix("hlo.contracts.").removeprefix("hlo.")
        return f"[`{match[1]}`](#{known[name]})" if name in known else match[0]

    return "".join(part if part.startswith("```") else re.sub(r"`([\w.]+)`", link, part) for part in parts)


if __name__ == "__main__":
    main()

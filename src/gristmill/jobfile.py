"""Reads a job file: YAML to `Job`, with `--set` overrides and errors that name the key.

PyYAML alone reads YAML 1.1, where `no` is false, `6e-4` is a string and a repeated key silently wins; the loader here keeps its parser and
replaces those rules by the YAML 1.2 core schema, plus underscores in numbers.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import override

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gristmill.config import DisagreementError, Job
from gristmill.errors import JobError

_SHOWN_CHARACTERS = 80
_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F][0-9a-fA-F_]*|0o[0-7][0-7_]*", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema; a repeated key is an error."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key: object = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _constructor(name: str, read: Callable[[str], object]) -> Callable[[_Loader, yaml.ScalarNode], object]:
    """Reads a scalar without its underscores; a tag can stand before one that is none of its kind."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> object:
        text = loader.construct_scalar(node)
        try:
            return read(text.replace("_", "").lower())
        except (KeyError, ValueError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no {name}", node.start_mark) from error

    return construct


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in {"null", "str", "seq", "map"}
}
_Loader.add_constructor("tag:yaml.org,2002:bool", _constructor("boolean", {"true": True, "false": False}.__getitem__))
_Loader.add_constructor("tag:yaml.org,2002:int", _constructor("integer", lambda text: int(text, 0)))
_Loader.add_constructor("tag:yaml.org,2002:float", _constructor("number", _float))


def parse(text: str, name: str = "the job file") -> object:
    """The value of a YAML text.

    Raises:
        JobError: the text is no YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise JobError(
            f"{name} cannot be read",
            found=f"{getattr(error, 'problem', None) or error}" + (f", at line {mark.line + 1} column {mark.column + 1}" if mark else ""),
            expected="YAML with every key once",
            next_step="correct that line",
        ) from error


def load(path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a file, with each `a.b=value` of `overrides` put in its place before it is checked.

    Raises:
        JobError: the file is missing, is no YAML, or is not a valid job.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        raise JobError(
            "the job file cannot be read",
            found=f"{path}: {error}",
            expected="a YAML file",
            next_step="name an existing job file, as in jobs/",
        ) from error
    data = parse(text)
    if not isinstance(data, dict):
        raise JobError(
            f"{path} is no job", found=f"{type(data).__name__}", expected="a mapping of keys", next_step="start from jobs/demo.yaml"
        )
    job: dict[str, object] = data
    for item in overrides:
        _override(job, item)
    return validate(job)


def _override(job: dict[str, object], item: str) -> None:
    path, equals, value = item.partition("=")
    *parents, key = path.split(".")
    if not equals or not all((*parents, key)):
        raise JobError(
            "--set cannot be read", found=repr(item), expected="KEY.KEY=VALUE", next_step="write for instance --set train.seed=1"
        )
    section = job
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise JobError(
                f"--set {item} has no place",
                found=f"{parent} is {inner!r}",
                expected=f"{parent} to hold keys",
                next_step="see gristmill show",
            )
        section: dict[str, object] = inner
    section[key] = parse(value, f"--set {item}")


def validate(job: dict[str, object]) -> Job:
    """The job that a mapping stands for.

    Raises:
        JobError: it names every key that is wrong.
    """
    try:
        text = json.dumps(job)
    except ValueError as error:
        raise JobError(
            "the job cannot be read", found="an anchor that holds itself", expected="values that end", next_step="correct that alias"
        ) from error
    try:
        # JSON mode is strict about types and still reads lists as tuples.
        return Job.model_validate_json(text)
    except ValidationError as error:
        problems = [_problem(problem) for problem in error.errors()]
    whats, founds, expecteds, nexts = zip(*problems, strict=True)
    raise JobError("; ".join(whats), found="; ".join(founds), expected="; ".join(expecteds), next_step="; ".join(dict.fromkeys(nexts)))


def _problem(problem: ErrorDetails) -> tuple[str, str, str, str]:
    """What, found, expected and next of one of pydantic's errors."""
    section, path = _section(problem["loc"])
    key = ".".join(path)
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = list(section.model_fields) if section else []
        nearest = difflib.get_close_matches(path[-1], allowed, n=1, cutoff=0.5)
        expected = f"{nearest[0]!r}" if nearest else f"one of {', '.join(sorted(allowed))}"
        return f"unknown key {key}", repr(path[-1]), expected, "correct the key's name"
    if kind == "missing":
        return f"missing key {key}", "nothing", f"a value for {path[-1]}", f"add {key} to the job file"
    disagreement = problem.get("ctx", {}).get("error")
    if isinstance(disagreement, DisagreementError):
        return f"keys of {key or 'the job'} do not go together", disagreement.found, disagreement.expected, "correct one of the values"
    shown = json.dumps(problem["input"])
    what = f"wrong value for {key or 'the job'}"
    return what, shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 3]}...", problem["msg"], "correct the value"


def _section(location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The section class that holds the last key of a location, and the location without the tags of unions."""
    node: object = Job
    holder: type[BaseModel] | None = None
    path: list[str] = []
    for part in location:
        if isinstance(node, types.UnionType) and any(part == _tag_of(member) for member in typing.get_args(node)):
            node = next(member for member in typing.get_args(node) if part == _tag_of(member))
            continue
        path.append(str(part))
        holder = node if isinstance(node, type) and issubclass(node, BaseModel) else None
        node = _child(node, part)
    return holder, path


def _tag_of(member: object) -> object:
    if isinstance(member, type) and issubclass(member, BaseModel) and "kind" in member.model_fields:
        return typing.get_args(member.model_fields["kind"].annotation)[0]
    return None


def _child(node: object, part: int | str) -> object:
    if isinstance(node, type) and issubclass(node, BaseModel):
        field = node.model_fields.get(str(part))
        return _plain(field.annotation) if field else None
    arguments = typing.get_args(node)
    return _plain(arguments[-1]) if arguments else None


def _plain(annotation: object) -> object:
    """The type below `Annotated`."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation

"""Sphinx extension: pages with every option of every method and command, made from the configs at build time.

Writes docs/generated/*.md before Sphinx reads the sources: one page for each module of method_configs, one for the
dataparsers, one for the commands. The texts are the docstrings under the fields, which are the `--help` texts as well.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.plugins.types import MethodSpecification
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import eval
import method_configs
from crossnorm_ns.data import make_scene
from crossnorm_ns.representation.command import COMMANDS

TRAINER = "Trainer"
LAUNCH = """`ns-train`'s command line for processes that torchrun starts, each of which trains as one of them:
`torchrun --nproc-per-node 2 -m crossnorm_ns.engine.launch mipnerf-cn --data DATA`. It takes the options of the
[methods](../methods.md), but for `--machine.num-devices` and the like, which torchrun's own options say
([several GPUs](../MULTI_GPU.md))."""


@dataclass
class Option:
    """One option of a command."""

    name: str
    """Without the dashes before it; parts of nested configs are separated by dots."""
    kind: str
    default: str
    help: str

    @property
    def group(self) -> str:
        """The config that it belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def short_name(self) -> str:
        """As it is called within its config."""
        return self.name.rpartition(".")[2]


def options_of(config: Any, prefix: str = "") -> Iterator[Option]:
    """All options of a dataclass or of an instance of one (whose values are then the defaults), nested ones too.

    Choices of one config out of several (dataparsers) are left out: on the command line they are sub-commands.
    """
    owner = config if isinstance(config, type) else type(config)
    hints, texts = typing.get_type_hints(owner), _field_texts(owner)
    for field in dataclasses.fields(owner):
        if field.name == "_target" or not field.init or _is_subcommand(hints[field.name]):
            continue
        name, value = prefix + field.name.replace("_", "-"), _value(config, field)
        yield from _options_in(name, value, hints[field.name], texts.get(field.name, ""))


def options_of_function(function: Callable[..., Any]) -> Iterator[Option]:
    """All options of a command that is a function, with the texts of its docstring."""
    hints = typing.get_type_hints(function)
    texts = {part.arg_name: part.description or "" for part in docstring_parser.parse(function.__doc__ or "").params}
    for name, parameter in inspect.signature(function).parameters.items():
        value = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        yield Option(name.replace("_", "-"), _kind(hints[name]), _default(value), texts.get(name, ""))


def _options_in(name: str, value: Any, hint: Any, text: str) -> Iterator[Option]:
    """The option of a field, or those of the configs, dictionaries and lists in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from options_of(value, f"{name}.")
        return
    parts = {} if _is_union(hint) else _parts(value)
    inner = (typing.get_args(hint) or (Any,))[-1]
    for key, part in parts.items():
        yield from _options_in(f"{name}.{key.replace('_', '-')}", part, inner, text)
    if not parts:
        yield Option(name, type(value).__name__ if hint is Any else _kind(hint), _default(value), text)


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return {str(i): part for i, part in enumerate(value)}
    return value if isinstance(value, dict) else {}


def _is_subcommand(hint: Any) -> bool:
    return _is_union(hint) and any(dataclasses.is_dataclass(part) for part in typing.get_args(hint))


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _value(config: Any, field: dataclasses.Field) -> Any:
    if not isinstance(config, type):
        return getattr(config, field.name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _field_texts(owner: type) -> dict[str, str]:
    """The docstring under each field, those of base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if dataclasses.is_dataclass(base):
            found = ModuleAnalyzer.for_module(base.__module__).find_attr_docs()
            own = {name: lines for (cls, name), lines in found.items() if cls == base.__qualname__}
            texts.update({name: " ".join(" ".join(lines).split()) for name, lines in own.items()})
    return texts


def _kind(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(str(value) for value in arguments)
    if typing.get_origin(hint) in (tuple, list):
        several = len(arguments) == 1 or Ellipsis in arguments
        return f"several of {_kind(arguments[0])}" if several else " ".join(map(_kind, arguments))
    if _is_union(hint):
        return " or ".join(_kind(part) for part in arguments)
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not arguments else str(hint).replace("typing.", "")


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return value.__name__
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value)) or "none"
    return str(value) if value != "" else "empty"


def _cell(text: str) -> str:
    """Text in a Markdown table, where a bar would end the cell and a tag would be HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _table(options: dict[str, list[Option]], group: str) -> str:
    """The options of one config; a default that differs between methods is given for each."""
    by_name: dict[str, dict[str, Option]] = {}
    for method, several in options.items():
        for option in several:
            if option.group == group:
                by_name.setdefault(option.name, {})[method] = option
    lines = ["| option | type | default | |", "| --- | --- | --- | --- |"]
    for methods in by_name.values():
        first = next(iter(methods.values()))
        cells = [f"`{first.short_name}`", f"`{first.kind}`", _defaults(methods, len(options)), _cell(first.help)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _defaults(methods: dict[str, Option], total: int) -> str:
    by_default: dict[str, list[str]] = {}
    for method, option in methods.items():
        by_default.setdefault(option.default, []).append(method)
    if len(by_default) == 1 and len(methods) == total:
        return f"`{next(iter(by_default))}`"
    return "<br>".join(f"`{default}` ({', '.join(names)})" for default, names in by_default.items())


def _tables(options: dict[str, list[Option]]) -> str:
    """A section for each config: the model first, what is nerfstudio's own last."""
    groups = list(dict.fromkeys(option.group for several in options.values() for option in several))
    first, last = "pipeline.model", ("machine", "logging", "viewer")
    groups.sort(key=lambda group: (not group.startswith(first), group.startswith(last)))
    return "\n\n".join(f"## {f'`--{group}`' if group else TRAINER}\n\n{_table(options, group)}" for group in groups)


def _specifications(kind: type) -> dict[str, dict[str, Any]]:
    """All specifications of a kind, by module of method_configs and by the name they are registered under."""
    found: dict[str, dict[str, Any]] = {}
    for module in pkgutil.iter_modules(method_configs.__path__):
        content = vars(importlib.import_module(f"method_configs.{module.name}"))
        names = {name.replace("_", "-"): value for name, value in content.items() if isinstance(value, kind)}
        if names:
            found[module.name] = names
    return found


def method_pages() -> Iterator[tuple[str, str]]:
    """Name and text of the page of each module with methods."""
    for module, methods in _specifications(MethodSpecification).items():
        options = {name: list(options_of(specification.config)) for name, specification in methods.items()}
        described = "\n".join(f"- **{name}**: {specification.description}" for name, specification in methods.items())
        yield f"methods-{module}", f"# {', '.join(methods)}\n\n{described}\n\n{_tables(options)}\n"


def dataparser_page() -> str:
    """The page of the dataparsers."""
    parts = ["# Dataparsers", "Behind all other options of `ns-train`: the dataparser's name, then its options."]
    for parsers in _specifications(DataParserSpecification).values():
        for name, specification in parsers.items():
            table = _table({name: list(options_of(specification.config))}, "")
            parts += [f"## {name}", specification.description, table]
    return "\n\n".join(parts) + "\n"


def command_page() -> str:
    """The page of the commands that are not nerfstudio's."""
    commands = {f"crossnorm {name}": command for name, command in COMMANDS.items()}
    for module in pkgutil.iter_modules(eval.__path__, "eval."):
        if arguments := getattr(importlib.import_module(module.name), "Arguments", None):
            commands[f"python -m {module.name}"] = arguments
    parts = ["# Commands"]
    for name, arguments in commands.items():
        parts += [f"## {name}", arguments.__doc__.split("\n\n")[0], _table({name: list(options_of(arguments))}, "")]
    for name, function in make_scene.FORMATS.items():
        table = _table({name: list(options_of_function(function))}, "")
        parts += [f"## python -m crossnorm_ns.data.make_scene {name}", function.__doc__.split("\n\n")[0], table]
    parts += ["## python -m crossnorm_ns.engine.launch", LAUNCH]
    return "\n\n".join(parts) + "\n"


def write_pages(app: Sphinx) -> None:
    """Writes all pages; those that are as they were stay untouched, so that Sphinx does not read them again."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    pages = dict(method_pages()) | {"dataparsers": dataparser_page(), "commands": command_page()}
    for old in set(folder.glob("*.md")) - {folder / f"{name}.md" for name in pages}:
        old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}

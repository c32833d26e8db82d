"""Declared marshmallow schemas, many times faster: a typed decoder for load, straight-line Python for dump.

Nothing is declared twice. A load schema becomes a msgspec Struct: what its typed decoder accepts is what marshmallow
would have loaded, and whatever it does not accept, a coercion or an error, is for marshmallow, which also words the
errors. A dump schema becomes a function. What is not known to be equal is refused when it is compiled.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import groupby
from types import NoneType
from typing import Annotated, Any, get_args

import msgspec
from marshmallow import INCLUDE, Schema, fields, missing

from schemas.fields import But, Number, Object, Part, Property, Said, Text, Timestamp


class CannotCompile(TypeError):
    """The schema uses something whose fast form is not known to be equal to marshmallow's."""


#: What the typed decoder accepts of each field class: a part of what marshmallow accepts, loaded unchanged.
_ACCEPTED: dict[Any, Any] = {
    Text: str,
    Number: int | float,
    fields.Boolean: bool,
    Timestamp: Annotated[dt.datetime, msgspec.Meta(tz=True)],
    Object: dict[str, Any],
    fields.Raw: Any,
}
_NOT_BLANK = Annotated[str, msgspec.Meta(pattern=r"\S")]


def struct(
    schema: Schema, *, bases: tuple[type, ...] = (), rename: Mapping[str, str] | None = None
) -> type[msgspec.Struct]:
    """A Struct with an attribute for each field of a load schema; null and absent are None.

    `rename` gives attributes other names than the wire's. Raises CannotCompile.
    """
    rename = rename or {}
    _check(schema)
    attributes = _attributes(schema, rename)
    wire = {attribute: name for name, attribute in rename.items() if name in schema.fields}
    return msgspec.defstruct(
        type(schema).__name__, attributes, bases=(*bases, msgspec.Struct), kw_only=True, rename=wire, gc=False
    )


@cache
def _part(kind: type[Schema], names: tuple[str, ...]) -> type[msgspec.Struct]:
    """The Struct of what stands within others: one wherever it stands, and frozen, so that it can be a key."""
    attributes = _attributes(kind(only=names), {})
    return msgspec.defstruct(kind.__name__, attributes, kw_only=True, gc=False, frozen=True)


def _check(schema: Schema) -> None:
    if schema.unknown != INCLUDE or any(schema._hooks.values()) or schema.many or schema.partial:
        raise CannotCompile(f"{type(schema).__name__}: hooks, many, partial, or unknown fields not kept")


def _attributes(schema: Schema, rename: Mapping[str, str]) -> list[Any]:
    attributes: list[Any] = []
    for name, one in schema.fields.items():
        if one.data_key or one.attribute or one.validators or one.load_default is not missing:
            raise CannotCompile(f"{name}: renamed, validated or with a default")
        if one.required == bool(one.allow_none):
            raise CannotCompile(f"{name}: expected either required or nullable")
        accepted, attribute = _accepted(name, one), rename.get(name, name)
        attributes.append((attribute, accepted) if one.required else (attribute, accepted | None, None))
    return attributes


def _accepted(name: str, one: Any) -> Any:
    if type(one) is Part:
        _check(one.schema)
        return _part(type(one.schema), tuple(one.schema.fields))
    if type(one) is fields.List and type(one.inner) is Object and one.inner.allow_none:
        return list[dict[str, Any] | None]
    if type(one) not in _ACCEPTED:
        raise CannotCompile(f"{name}: {type(one).__name__} has no typed form")
    return _NOT_BLANK if type(one) is Text and one.required else _ACCEPTED[type(one)]


def dumper(schema: Schema, source: type) -> Callable[..., dict[str, Any]]:
    """A function equal to `schema.dump` for objects of `source`, a Struct whose parts are Structs or dicts.

    A dict given as its second argument is filled and returned instead of a new one. A plain Property becomes a few
    lines of Python, any other field is asked itself. A property whose first name `source` does not have is left out
    for good. Raises CannotCompile.
    """
    body, known = _Body(source, schema), _types(source)
    declared = [
        (name, one)
        for name, one in schema.fields.items()
        if not isinstance(one, Property) or any(path.split(".")[0] in known for path, _ in one.sources)
    ]
    for parent, group in groupby(declared, key=lambda item: _only_parent(item[1])):
        lines = [line for name, one in group for line in body.field(name, one, inside=parent is not None)]
        if parent is not None:
            lines = [f"if {body.there(parent)}:", *(f"    {line}" for line in lines)]
        body.lines += lines
    lines = ["if out is None: out = {}", *body.lines, "return out"]
    made: Callable[..., dict[str, Any]] = _function("m, out=None", lines, body.scope)
    return made


def steady(schema: Schema, parts: Iterable[str]) -> list[str]:
    """The plain properties of a dump schema that read nothing but these parts of the context, or what is in them.

    In the schema's order, so that a message becomes the same bytes in every process.
    """
    within = tuple(f"context.{part}." for part in parts)
    return [
        name
        for name, one in schema.fields.items()
        if type(one) is Property and one.absent is None
        if all(f"{path}.".startswith(within) for path, _ in one.sources)
    ]


def writer(schema: Schema) -> Callable[..., None]:
    """A function that puts its arguments, one for each property in the schema's order, under their names in a dict.

    None is left out, as `schema.dump` would. Raises CannotCompile.
    """
    lines, arguments = [], ["out"]
    for name, one in schema.fields.items():
        if type(one) is not Property or one.sources != ((name, None),) or one.absent is not None:
            raise CannotCompile(f"{name}: not a plain property of its own name")
        arguments.append(name)
        lines.append(f"if {name} is not None: out[{one.data_key!r}] = {name}")
    made: Callable[..., None] = _function(", ".join(arguments), lines, {})
    return made


def _function(arguments: str, lines: Iterable[str], scope: dict[str, Any]) -> Any:
    body = "\n    ".join(lines)
    exec(f"def made({arguments}):\n    {body}", scope)  # noqa: S102 nothing but our own schema's names is in it
    return scope["made"]


def _only_parent(one: Any) -> str | None:
    """The object that a property and its neighbours are read from, where that is all there is to reading it."""
    if type(one) is not Property or len(one.sources) > 1 or one.absent is not None:
        return None
    path, convert = one.sources[0]
    return None if isinstance(convert, Said) else path.rpartition(".")[0] or None


class _Body:
    """The lines of a dump function of `m`, under way; what is read from more than once has a variable."""

    def __init__(self, source: type, schema: Schema) -> None:
        self.lines: list[str] = []
        self.scope: dict[str, Any] = {"missing": missing, "get": schema.get_attribute}
        self._source = source
        self._variables = {"": "m"}  # of a path, or of a path and how it is read

    def field(self, name: str, one: Any, *, inside: bool) -> Iterator[str]:
        """Lines that put a field's value under its name; `inside`: its parent is known to be there."""
        key = repr(one.data_key or name)
        if type(one) is not Property:
            yield f"v = {self._named(one.serialize)}({name!r}, m, get)"
            yield f"if v is not missing: out[{key}] = v"
            return
        for order, (path, convert) in enumerate(one.sources):
            indent = "    " if order else ""
            if order:
                yield "if v is None:"
            if isinstance(convert, Said):
                said = self._variable(path, convert.read)
                yield f"{indent}v = {said}.{convert.name} if {said} is not None else None"
                continue
            yield f"{indent}v = {self._leaf(path) if inside else self._value(path)}"
            if isinstance(convert, But):
                kept, convert = self._named(convert.kept), convert.convert
                yield f"{indent}if v is not None and type(v) is not {kept}: v = {self._named(convert)}(v)"
            elif convert is not None:
                yield f"{indent}if v is not None: v = {self._named(convert)}(v)"
        yield f"if v is not None: out[{key}] = v"
        if one.absent is not None:
            yield f"else: out[{key}] = {self._named(one.absent)}"

    def there(self, path: str) -> str:
        """Python that asks whether something to read from stands at a path."""
        # What stands within a dict may be anything; what is declared has been judged.
        known = self._kind(path) is not None
        return f"{self._variable(path)} is not None" if known else f"type({self._variable(path)}) is dict"

    def _variable(self, path: str, read: Callable[[Any], Any] | None = None) -> str:
        """The variable of what stands at a path, or of what is read there; None in it if that is nothing."""
        key = path if read is None else f"{path} {self._named(read)}"
        if key not in self._variables:
            value, variable = self._value(path), f"p{len(self._variables)}"
            self.lines.append(f"{variable} = {value}")
            if read is not None:
                self.lines.append(f"if {variable} is not None: {variable} = {self._named(read)}({variable})")
            self._variables[key] = variable
        return self._variables[key]

    def _value(self, path: str) -> str:
        """Python that reads a path, None where any part of it is."""
        parent = path.rpartition(".")[0]
        return f"{self._leaf(path)} if {self.there(parent)} else None" if parent else self._leaf(path)

    def _leaf(self, path: str) -> str:
        """Python that reads the last name of a path whose parent is there."""
        parent, _, name = path.rpartition(".")
        self._kind(path)
        if _is_struct(self._kind(parent)):
            return f"{self._variable(parent)}.{name}"
        if any(hasattr(kind, name) for kind in (dict, list, str, int, float)):
            raise CannotCompile(f"{path}: marshmallow would find an attribute of the value it stands in")
        above = self._variable(parent)
        return f"({above}[{name!r}] if {name!r} in {above} else None)"  # a third of what get costs

    def _kind(self, path: str) -> Any:
        """The type that is declared for a path; None within a dict. Raises CannotCompile."""
        if not path:
            return self._source
        parent, _, name = path.rpartition(".")
        above = self._kind(parent)
        if not _is_struct(above):
            return None
        if name not in _types(above):
            raise CannotCompile(f"{path}: not declared")
        return _of(_types(above)[name])

    def _named(self, one: Any) -> str:
        """A name for something that the lines use."""
        name = f"x{id(one)}"
        self.scope[name] = one
        return name


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


@cache  # msgspec works them out anew each time, which was most of what starting took
def _types(kind: Any) -> dict[str, Any]:
    return {one.name: one.type for one in msgspec.structs.fields(kind)}


def _of(kind: Any) -> Any:
    """The type itself of one that may be None."""
    return next((one for one in get_args(kind) if one is not NoneType), kind)

"""Declared marshmallow schemas, many times faster: a typed decoder for load, straight-line Python for dump.

Nothing is declared twice. A load schema becomes a msgspec Struct: what its typed decoder accepts is what marshmallow
would have loaded, and whatever it does not accept, a coercion or an error, is for marshmallow, which also words the
errors. A dump schema becomes a function. What is not known to be equal is refused when it is compiled.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from types import NoneType
from typing import Annotated, Any, get_args

import msgspec
from marshmallow import INCLUDE, Schema, fields, missing

from schemas.fields import Number, Object, Part, Property, Text, Timestamp


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
    if schema.unknown != INCLUDE or any(schema._hooks.values()) or schema.many or schema.partial:
        raise CannotCompile(f"{type(schema).__name__}: hooks, many, partial, or unknown fields not kept")
    rename = rename or {}
    attributes: list[Any] = []
    for name, one in schema.fields.items():
        if one.data_key or one.attribute or one.validators or one.load_default is not missing:
            raise CannotCompile(f"{name}: renamed, validated or with a default")
        if one.required == bool(one.allow_none):
            raise CannotCompile(f"{name}: expected either required or nullable")
        accepted, attribute = _accepted(name, one), rename.get(name, name)
        attributes.append((attribute, accepted) if one.required else (attribute, accepted | None, None))
    wire = {attribute: name for name, attribute in rename.items() if name in schema.fields}
    return msgspec.defstruct(
        type(schema).__name__, attributes, bases=(*bases, msgspec.Struct), kw_only=True, rename=wire, gc=False
    )


def _accepted(name: str, one: Any) -> Any:
    if type(one) is Part:
        return struct(one.schema)
    if type(one) is fields.List and type(one.inner) is Object and one.inner.allow_none:
        return list[dict[str, Any] | None]
    if type(one) not in _ACCEPTED:
        raise CannotCompile(f"{name}: {type(one).__name__} has no typed form")
    return _NOT_BLANK if type(one) is Text and one.required else _ACCEPTED[type(one)]


def dumper(schema: Schema, source: type) -> Callable[[Any], dict[str, Any]]:
    """A function equal to `schema.dump` for objects of `source`, a Struct whose parts are Structs or dicts.

    A plain Property becomes a few lines of Python, any other field is asked itself. A property whose first name
    `source` does not have is left out for good. Raises CannotCompile.
    """
    scope: dict[str, Any] = {"missing": missing, "get": schema.get_attribute}
    lines: list[str] = []
    known = {one.name: one.type for one in msgspec.structs.fields(source)}
    declared = [
        (number, name, one)
        for number, (name, one) in enumerate(schema.fields.items())
        if not isinstance(one, Property) or any(path.split(".")[0] in known for path, _ in one.sources)
    ]
    for parent, group in groupby(declared, key=lambda item: _shared_parent(item[2])):
        if parent is not None:
            lines += [f"p = {_expression(parent, known)}", "if p is not None:"]
        for number, name, one in group:
            key = repr(one.data_key or name)
            if type(one) is not Property:
                scope[f"f{number}"] = one.serialize
                lines += [f"v = f{number}({name!r}, m, get)", f"if v is not missing: out[{key}] = v"]
            elif parent is not None:
                reading = _reading(number, one, scope, lambda path: _leaf("p", path, known))
                lines += [f"    {line}" for line in (*reading, *_storing(number, key, one, scope))]
            else:
                lines += _reading(number, one, scope, lambda path: _expression(path, known))
                lines += _storing(number, key, one, scope)
    body = "\n    ".join(["out = {}", *lines, "return out"])
    exec(f"def dump(m):\n    {body}", scope)  # noqa: S102 nothing but our own schema's names is in it
    made: Callable[[Any], dict[str, Any]] = scope["dump"]
    return made


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
    body, scope = "\n    ".join(lines), dict[str, Any]()
    exec(f"def write({', '.join(arguments)}):\n    {body}", scope)  # noqa: S102 as above
    made: Callable[..., None] = scope["write"]
    return made


def _shared_parent(one: Any) -> str | None:
    """The object that a property and its neighbours are read from, where that is all there is to reading it."""
    if type(one) is not Property or len(one.sources) > 1 or one.absent is not None:
        return None
    return one.sources[0][0].rpartition(".")[0] or None


def _reading(number: int, one: Property, scope: dict[str, Any], expression: Callable[[str], str]) -> Iterator[str]:
    """Lines that leave in `v` what the first of a property's sources gives, or None."""
    for order, (path, convert) in enumerate(one.sources):
        indent = "    " if order else ""
        if order:
            yield "if v is None:"
        yield f"{indent}v = {expression(path)}"
        if convert is not None:
            scope[f"c{number}_{order}"] = convert
            yield f"{indent}if v is not None: v = c{number}_{order}(v)"


def _storing(number: int, key: str, one: Property, scope: dict[str, Any]) -> Iterator[str]:
    """Lines that put `v` under a key, or what is sent where there is none."""
    yield f"if v is not None: out[{key}] = v"
    if one.absent is not None:
        scope[f"d{number}"] = one.absent
        yield f"else: out[{key}] = d{number}"


def _expression(path: str, known: Mapping[str, Any]) -> str:
    """Python that reads a path of `m`, None where any part of it is."""
    parent, _, _ = path.rpartition(".")
    if not parent:
        if path not in known:
            raise CannotCompile(f"{path}: not declared")
        return f"m.{path}"
    return f"(None if (o := {_expression(parent, known)}) is None else {_leaf('o', path, known)})"


def _leaf(variable: str, path: str, known: Mapping[str, Any]) -> str:
    """Python that reads the last name of a path from the variable that holds its parent."""
    first, *parents, name = path.split(".")
    kind: Any = _of(known[first])
    for parent in parents:
        kind = _of(_types(kind)[parent]) if _is_struct(kind) else None
    if _is_struct(kind):
        if name not in _types(kind):
            raise CannotCompile(f"{path}: not declared")
        return f"{variable}.{name}"
    if any(hasattr(kind, name) for kind in (dict, list, str, int, float)):
        raise CannotCompile(f"{path}: marshmallow would find an attribute of the value it stands in")
    # What stands within a dict may be anything; the dict itself has been judged.
    reading = f"{variable}.get({name!r})"
    return reading if not parents else f"({reading} if type({variable}) is dict else None)"


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _types(kind: Any) -> dict[str, Any]:
    return {one.name: one.type for one in msgspec.structs.fields(kind)}


def _of(kind: Any) -> Any:
    """The type itself of one that may be None."""
    return next((one for one in get_args(kind) if one is not NoneType), kind)

"""Tables of named constructors; a constructor's signature is the schema of its configuration entry.

A *leaf* is a mapping ``{"name": NAME, **arguments}`` (or just ``"NAME"``). ``check`` validates it without building
anything; ``build`` validates it and calls the constructor. Both name the file of the mistake by the dotted path
``where`` and list what would have been allowed.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Table = Mapping[str, Callable[..., Any]]
Leaf = Mapping[str, Any] | str
LARGEST, MOST = 3.4028234e38, 1 << 53  # of float32, and of whole numbers


def split(table: Table, leaf: Leaf, where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The constructor that ``leaf`` names and its arguments. ``ValueError`` if there is no such name."""
    if isinstance(leaf, str):
        leaf = {"name": leaf}
    if not isinstance(leaf, Mapping) or "name" not in leaf:
        raise ValueError(f"{where}: expected a mapping with a 'name', one of {sorted(table)}, got {leaf!r}")
    arguments = {key: value for key, value in leaf.items() if key != "name"}
    name = leaf["name"]
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{where}.name: {name!r} is unknown; allowed: {', '.join(sorted(table))}")
    return table[name], arguments


def check(table: Table, leaf: Leaf, where: str, given: Sequence[str] = (), also: Sequence[str] = ()) -> None:
    """Validate ``leaf`` against the signature of the constructor it names.

    ``given`` are names of arguments that the caller of ``build`` supplies itself; they may not stand in the file.
    ``also`` are keys that the caller has taken out of the leaf already; messages name them among the allowed ones.
    ``ValueError`` for an unknown name, an unknown or missing argument, or a value of the wrong type.
    """
    constructor, arguments = split(table, leaf, where)
    check_arguments(constructor, arguments, where, given, also)


def check_arguments(
    constructor: Callable[..., Any],
    arguments: Mapping[str, Any],
    where: str,
    given: Sequence[str] = (),
    also: Sequence[str] = (),
) -> None:
    """``check`` of a mapping that names no constructor, because there is only one: ``arguments`` are its own."""
    parameters, hints = schema(constructor)
    allowed = [name for name in parameters if name not in given]
    for key, value in arguments.items():
        if key not in allowed:
            raise ValueError(f"{where}.{key}: unknown key; allowed: {', '.join([*allowed, *also]) or 'none'}")
        if key in hints:
            require_match(f"{where}.{key}", value, hints[key])
    for name in allowed:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise ValueError(f"{where}.{name}: missing; it is required by {where}")


def build(table: Table, leaf: Leaf, where: str, **given: Any) -> Any:
    """Validate ``leaf`` and call its constructor, with the leaf's arguments and those of ``given`` that it accepts."""
    check(table, leaf, where, tuple(given))
    constructor, arguments = split(table, leaf, where)
    accepted, _ = schema(constructor)
    return constructor(**arguments, **{key: value for key, value in given.items() if key in accepted})


def schema(constructor: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The keyword arguments of a constructor and their type hints.

    A constructor that takes ``**arguments`` and passes them to another one (a dataclass, say) names that one in its
    attribute ``passes_to``; the arguments of the other one then count as its own.
    """
    parameters = {n: p for n, p in inspect.signature(constructor).parameters.items() if p.kind is not p.VAR_KEYWORD}
    hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    further = getattr(constructor, "passes_to", None)
    if further is None:
        return parameters, hints
    others, other_hints = schema(further)
    return {**parameters, **others}, {**other_hints, **hints}


def require_match(where: str, value: Any, hint: Any) -> None:
    """``ValueError`` unless ``matches(value, hint)``. The line names the dotted key ``where``, what it expects and why
    the value, where it looks like one, is none."""
    if matches(value, hint):
        return
    why = ""
    if any(isinstance(number, (int, float)) and not usual(number) for number in scalars(value)):
        why = "; a number has to be finite in float32, a whole number within 2^53"
    elif matches("", hint) and isinstance(value, (int, float)):
        why = "; write it in quotes"
    shown = repr(value)
    raise ValueError(
        f"{where}: expected {readable(hint)}, got {shown if len(shown) <= 200 else shown[:200] + '...'}{why}"
    )


def scalars(value: Any) -> Iterator[Any]:
    """The single values of plain data."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from scalars(item)
    else:
        yield value


def usual(number: float) -> bool:
    """Whether a number is one that every part of the program can hold: finite in float32, or where it is whole, exact
    in every reader of JSON and with room below 64 bits for what is computed from it."""
    return abs(number) <= (MOST if isinstance(number, int) else LARGEST)


def matches(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML fits a type hint. Integers fit ``float``; lists fit tuples and sequences. NaN and
    infinity fit no ``float``: a size, rate or weight that is meant to have no limit says so in another way (null)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin is typing.Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, argument) for argument in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and usual(value)  # a bool is an int, too
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and usual(value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and matches_tuple(value, arguments)
    if origin in (list, Sequence):
        return isinstance(value, (list, tuple)) and all(matches(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(matches(item, arguments[1]) for item in value.values())
    if origin is not None:  # a generic type that no configuration uses is not checked
        return True
    return isinstance(value, hint) if inspect.isclass(hint) else True


def matches_tuple(value: Sequence[Any], arguments: tuple[Any, ...]) -> bool:
    """``tuple[int, ...]`` takes any length, ``tuple[float, float]`` exactly two."""
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return all(matches(item, arguments[0]) for item in value)
    return len(value) == len(arguments) and all(map(matches, value, arguments))


def readable(hint: Any) -> str:
    """A type hint as a user would say it: ``float``, ``one of 'cosine', 'l2'``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        # An abstract class is there for programs, which pass an object of it; no file can hold one.
        return " or ".join(readable(argument) for argument in arguments if not inspect.isabstract(argument))
    if hint is type(None):
        return "null"
    if hint is str:
        return "text"
    if origin is tuple:
        return f"[{', '.join('...' if argument is Ellipsis else readable(argument) for argument in arguments)}]"
    if origin in (dict, Mapping):
        return "mapping"
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint).replace("typing.", "")

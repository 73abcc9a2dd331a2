"""Names that users type: the nearest known one, for the end of an error message, and parts as name:key=value."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    float: (float, "a number"),
    int: (int, "a whole number"),
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, if one is near, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" known: {', '.join(known)}"


def parse_part(what: str, text: str, kinds: Mapping[str, type], readers=READERS, **given: object) -> Any:
    """ "name" or "name:key=value,key=value" as a value of one of the kinds, which are dataclasses.

    what: a kind is called, for errors. readers: by the type of a field, how its text is read and what it is; fields of
    other types cannot be typed. given: other fields. ValueError with the nearest name for what is unknown.
    """
    name, _, rest = text.partition(":")
    if name not in kinds:
        raise ValueError(f"unknown {what} {name!r}{nearest(name, kinds)}")
    types = {field.name: field.type for field in fields(kinds[name]) if field.type in readers}
    values: dict[str, object] = {}
    for setting in filter(None, rest.split(",")):
        key, equals, value = setting.partition("=")
        if key not in types:
            raise ValueError(f"{what} {name} has no {key!r}{nearest(key, types)}")
        if not equals:
            raise ValueError(f"{what} {text!r}: {key} has no value; write {name}:{key}=VALUE")
        read, said = readers[types[key]]
        try:
            values[key] = read(value)
        except ValueError:
            raise ValueError(f"{what} {name}: {key} is {value!r}; it is {said}") from None
    return kinds[name](**given, **values)

"""As much of JSON Schema as the OpenAPI document uses: enough to hold answers against it. Unknown words are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SAYS_NOTHING = {"description", "format", "contentEncoding"}
_ABOUT: dict[str, tuple[type, ...]] = {
    "minimum": (int, float),
    "minLength": (str,),
    **dict.fromkeys(("minItems", "maxItems", "items"), (list,)),
    **dict.fromkeys(("required", "properties", "additionalProperties"), (dict,)),
}
"""Of which values a word says something; of others it says nothing."""
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def problems(value: Any, schema: Mapping[str, Any], components: Mapping[str, Any], path: str = "$") -> list[str]:
    """What does not hold, with where."""
    found: list[str] = []
    for word, told in schema.items():
        if word in _ABOUT and not isinstance(value, _ABOUT[word]):
            continue
        match word:
            case "$ref":
                found += problems(value, components[told.rpartition("/")[2]], components, path)
            case "anyOf":
                if all(problems(value, one, components, path) for one in told):
                    found.append(f"{path}: {value!r} is none of what it may be")
            case "allOf":
                found += [text for one in told for text in problems(value, one, components, path)]
            case "type":
                if not isinstance(value, _TYPES[told]) or (isinstance(value, bool) and told != "boolean"):
                    found.append(f"{path}: {value!r} is no {told}")
            case "const":
                found += [] if value == told else [f"{path}: {value!r} is not {told!r}"]
            case "enum":
                found += [] if value in told else [f"{path}: {value!r} is not one of {told}"]
            case "minimum":
                found += [] if value >= told else [f"{path}: {value} is below {told}"]
            case "minLength" | "minItems":
                found += [] if len(value) >= told else [f"{path}: too short"]
            case "maxItems":
                found += [] if len(value) <= told else [f"{path}: too long"]
            case "required":
                found += [f"{path}.{name}: missing" for name in told if name not in value]
            case "properties":
                for name in told.keys() & value.keys():
                    found += problems(value[name], told[name], components, f"{path}.{name}")
            case "additionalProperties" if told is False:
                found += [f"{path}.{name}: unknown" for name in value if name not in schema["properties"]]
            case "additionalProperties":
                for name in value:
                    found += problems(value[name], told, components, f"{path}.{name}")
            case "items":
                for place, item in enumerate(value):
                    found += problems(item, told, components, f"{path}[{place}]")
            case _:
                assert word in _SAYS_NOTHING, f"{path}: {word} is not understood here"
    return found

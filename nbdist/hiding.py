"""Tell what looks like a secret in texts and settings that are shown, and write it as ``***``.

By name, word by word: ``db_password``, ``apiKey`` and ``auth`` are names of secrets; ``tokenizer``,
``max_tokens``, ``eos_token``, ``monkey`` and ``author`` are not. And by form: the password in
``postgres://user:password@host``.

Not covered: a secret under a name that says nothing, or within another text.
"""

from __future__ import annotations

import re

MASK = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORD = re.compile(
    "passwords?|passwd|passphrase|secrets?|credentials?|authorization|bearer"
    "|apikey|(access|secret|private)key|(auth|access)token"
)
# The word `key` must stand behind one of these to be a secret's, the word `token` must not.
_BEFORE_KEY = re.compile(
    "access|account|api|auth|encryption|license|master|private|secret|service|sign|signing|ssh"
    "|storage"
)
_BEFORE_TOKEN = re.compile(
    "additional|audio|bos|class|cls|end|eos|first|image|last|mask|max|min|next|num|pad|per|prompt"
    "|sep|sos|special|start|stop|unk|video"
)
_URL = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s/:@]*:)[^\s/]*@")
_FIELD = re.compile(r"(?P<before>(?:^|[?&;\s])(?P<name>[\w.-]+)=)(?P<value>[^&;\s]+)")
_ASSIGNED = re.compile(r"([\w.-]+)['\"\]]*\s*[:=]\s*")


def is_secret_name(name: str) -> bool:
    """Whether *name*, of a setting or a variable, is that of a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if any(map(_SECRET_WORD.fullmatch, words)):
        return True
    before, last = ["", "", *words][-2:]
    if last == "key":
        return _BEFORE_KEY.fullmatch(before) is not None
    return last == "auth" or (last == "token" and not _BEFORE_TOKEN.fullmatch(before))


def hide_passwords(text: str) -> str:
    """Return *text* without the passwords in its URLs and connection strings."""
    return _FIELD.sub(_without_value, _URL.sub(rf"\1{MASK}@", text))


def _without_value(field: re.Match[str]) -> str:
    return f"{field['before']}{MASK}" if is_secret_name(field["name"]) else field[0]


def hide_assigned(text: str) -> str:
    """Return *text*, a setting or a piece of a file, without what looks like a secret in it.

    Nothing is left from the value of the first secret name on: nobody can say where it ends.
    """
    for found in _ASSIGNED.finditer(text):
        if is_secret_name(found[1]):
            return hide_passwords(text[: found.end()]) + MASK
    return hide_passwords(text)

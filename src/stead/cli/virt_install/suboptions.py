"""Reads `key=value,key=value` as virt-install writes it, against a table of what each option knows. Pure.

A leading word without `=` is the option's first sub-option (`--disk /x.img,size=3`). Quotes protect commas. Every
sub-option is known, or refused by its name: nothing is dropped.
"""

from __future__ import annotations

import difflib
import re

import msgspec

#: longest text of one option, characters
MAX_TEXT = 64 * 1024
_ON = frozenset(("on", "yes", "true", "1", "y"))
#: what a sub-option's name can look like; anything else before `=` belongs to a path or URL
_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]+")
_OFF = frozenset(("off", "no", "false", "0", "n"))


class Refusal(Exception):
    """The line cannot be honoured; the message is one sentence, on one line, that names what and says what to do."""

    def __init__(self, message: str) -> None:
        # it may quote what was typed: no line break or terminal control may come through
        super().__init__("".join(sign if sign.isprintable() else " " for sign in message).strip())


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option of virt-install. `value` is `required`, `optional` (may stand bare) or `none` (a switch)."""

    flag: str
    text: str
    #: other spellings on the command line
    spellings: tuple[str, ...] = ()
    value: str = "required"
    #: sub-option that a leading word without `=` sets
    lead: str = ""
    #: sub-options → what they do
    known: dict[str, str] = {}
    #: sub-options → why they are refused
    refused: dict[str, str] = {}
    #: other names of sub-options → name in `known` or `refused`
    aliases: dict[str, str] = {}
    #: whether further words without `=` are collected (`--cpu X,+vmx`, `--boot hd,network`)
    takes_words: bool = False


class Given(msgspec.Struct, frozen=True):
    """One use of an option, read: sub-options by their own names, and words in their order."""

    flag: str
    values: dict[str, str]
    words: tuple[str, ...] = ()

    def get(self, name: str, default: str = "") -> str:
        """The value of a sub-option."""
        return self.values.get(name, default)

    def switch(self, name: str) -> bool | None:
        """A sub-option that is on or off; None when absent. Raises Refusal."""
        text = self.values.get(name)
        if text is None:
            return None
        if text.lower() in _ON:
            return True
        if text.lower() in _OFF:
            return False
        raise Refusal(f"{self.flag} {name}={text}: on or off is meant")

    def number(self, name: str, *, least: int = 1, most: int = 1_000_000) -> int | None:
        """A sub-option that is a whole number; None when absent. Raises Refusal."""
        text = self.values.get(name)
        return None if text is None else whole(f"{self.flag} {name}", text, least=least, most=most)


def whole(what: str, text: str, *, least: int = 1, most: int = 1_000_000) -> int:
    """A whole number within bounds. Raises Refusal that begins with `what`."""
    cleaned = text.strip()
    if not (cleaned.isascii() and cleaned.isdigit()) or len(cleaned) > 18 or not least <= int(cleaned) <= most:
        raise Refusal(f"{what}={text[:40]}: a whole number from {least} to {most} is meant")
    return int(cleaned)


def pieces(flag: str, text: str) -> list[str]:
    """Split at commas outside quotes; quotes are removed. Raises Refusal for an open quote."""
    if len(text) > MAX_TEXT:
        raise Refusal(f"{flag}: the value is longer than {MAX_TEXT} characters")
    if "\0" in text:
        raise Refusal(f"{flag}: the value holds a NUL character")
    found: list[str] = []
    current: list[str] = []
    quote = ""
    for sign in text:
        if quote:
            if sign == quote:
                quote = ""
            else:
                current.append(sign)
        elif sign in "\"'":
            quote = sign
        elif sign == ",":
            found.append("".join(current))
            current = []
        else:
            current.append(sign)
    if quote:
        raise Refusal(f"{flag}: a {quote} is opened and not closed")
    found.append("".join(current))
    return [piece.strip() for piece in found if piece.strip()]


def read(option: Option, text: str) -> Given:
    """One use of an option. Raises Refusal for what it does not know."""
    values: dict[str, str] = {}
    words: list[str] = []
    for index, piece in enumerate(pieces(option.flag, text)):
        name, equals, value = piece.partition("=")
        if index == 0 and option.lead and not _is_name(option, name) and not (equals and _WORD.fullmatch(name)):
            values[option.lead] = piece
            continue
        if not equals:
            if not _is_name(option, piece) and option.takes_words:
                words.append(piece)
                continue
            value = "on"
        values[_name(option, name.strip())] = value.strip()
    return Given(option.flag, values, tuple(words))


def _is_name(option: Option, name: str) -> bool:
    name = name.strip()
    return name in option.known or name in option.refused or name in option.aliases


def _name(option: Option, name: str) -> str:
    found = option.aliases.get(name, name)
    if found in option.known:
        return found
    if found in option.refused:
        raise Refusal(f"{option.flag} {name}= is refused: {option.refused[found]}")
    near = difflib.get_close_matches(name, option.known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise Refusal(f"{option.flag} has no sub-option {name[:60]!r}{hint}; `stead create {option.flag}=?` lists them")


def describe(option: Option) -> str:
    """What `--flag=?` prints: every sub-option, with the refused ones and their reasons."""
    lines = [f"{option.flag}: {option.text}"]
    for name, text in option.known.items():
        mark = " (first word)" if name == option.lead else ""
        lines.append(f"  {name:<24} {text}{mark}")
    lines += [f"  {name:<24} refused: {reason}" for name, reason in option.refused.items()]
    if option.aliases:
        lines.append("  also written: " + ", ".join(f"{other} = {name}" for other, name in option.aliases.items()))
    return "\n".join(lines)

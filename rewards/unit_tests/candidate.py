"""The side that is tested: a program that runs the candidate's code and does what the tests ask of it.

It runs in a sandbox of its own and knows nothing of the tests but the arguments of each call. Whatever the code does to this process
and its interpreter, all that it can reach of the tests is the values that it answers with. Only the standard library.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
from collections import deque
from typing import TYPE_CHECKING, Any

from agentrl.rewards.unit_tests.script import define_exit
from agentrl.rewards.unit_tests.values import CannotCross, ChannelBroken, decode, encode, read_job, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable

MODULE = "solution"
"""Name under which a candidate of one file is imported."""
PROJECT = "/tmp/project"
"""Where a candidate of several files lies."""
_MUTABLE = (list, dict, set, bytearray, deque)

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "getitem": lambda owner, key: owner[key],
    "setitem": lambda owner, key, value: owner.__setitem__(key, value),
    "delitem": lambda owner, key: owner.__delitem__(key),
    "getattr": getattr,
    "setattr": setattr,
    "iter": iter,
    "next": next,
    "str": str,
}


def main(job: int, requests: int, answers: int) -> None:
    """Entry point: load the code, then answer until the tests have gone.

    Args:
        job: descriptor of a file of JSON: `{"code": [text, ...]}`, run one after the other, or `{"files": {path: text}}`.
        requests: descriptor that the tests write to.
        answers: descriptor that the tests read from.
    """
    _Candidate(read_job(job), requests, answers).serve()
    os._exit(0)  # not through whatever the code has left to be run at the end


class _Candidate:
    def __init__(self, job: dict[str, Any], requests: int, answers: int) -> None:
        self._job, self._requests, self._answers = job, requests, answers
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def serve(self) -> None:
        try:
            self._answer(self._load)
            while True:
                self._answer(functools.partial(self._do, *receive(self._requests)))
        except ChannelBroken:
            return

    def _answer(self, action: Callable[[], Any]) -> None:
        try:
            message = action()
        except ChannelBroken:
            raise
        except CannotCross as error:
            message = ["refused", str(error)]
        except BaseException as error:  # the candidate's code may raise anything
            message = ["raised", [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"], _text_of(error)]
        try:
            send(self._answers, message)
        except CannotCross as error:
            send(self._answers, ["refused", str(error)])

    def _load(self) -> Any:
        if "files" in self._job:
            write_files(PROJECT, self._job["files"])
            sys.path.insert(0, PROJECT)
            return ["value", None, []]
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module
        define_exit()
        for code in self._job["code"]:
            exec(compile(code, f"{MODULE}.py", "exec"), vars(module))
        return ["value", None, []]

    def _do(self, action: str, *rest: Any) -> Any:
        if action == "find":
            module, name = rest
            try:
                found = getattr(importlib.import_module(module), name) if name else importlib.import_module(module)
            except AttributeError as error:
                return ["missing", str(error)]
            return ["value", self._encode(found), []]
        if action == "operate":
            name, owner, *arguments = rest
            result = _OPERATIONS[name](self._objects[owner], *(self._decode(one) for one in arguments))
            return ["value", self._encode(result), []]
        assert action == "call"
        return self._call(*rest)

    def _call(self, owner: int, arguments: list[Any], named: dict[str, Any]) -> Any:
        values = [self._decode(one) for one in arguments]
        result = self._objects[owner](*values, **{name: self._decode(one) for name, one in named.items()})
        answer = self._encode(result)
        changed = []
        for place, (value, sent) in enumerate(zip(values, arguments, strict=True)):
            if type(value) in _MUTABLE and (now := self._encode(value)) != sent:
                changed.append([place, now])
        return ["value", answer, changed]

    def _encode(self, value: Any) -> Any:
        return encode(value, self._foreign)

    def _foreign(self, value: Any) -> Any:
        """Keep what cannot cross, and send its number."""
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return {"t": "object", "v": [number, type(value).__name__]}

    def _decode(self, data: Any) -> Any:
        return decode(data, self._special)

    def _special(self, tag: str, content: Any) -> Any:
        if tag == "object":
            return self._objects[content]
        if tag == "builtin":
            return getattr(importlib.import_module("builtins"), content)
        if tag == "function":
            return lambda *arguments, **named: self._call_back(content, arguments, named)
        raise ChannelBroken(f"the tests sent something unknown: {tag}")

    def _call_back(self, number: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a function of the tests that was given as an argument; they wait for an answer and take this instead."""
        send(
            self._answers,
            ["call back", number, [self._encode(one) for one in arguments], {name: self._encode(one) for name, one in named.items()}],
        )
        while True:
            kind, *rest = receive(self._requests)
            if kind == "returned":
                return self._decode(rest[0])
            if kind == "raised":
                raise RuntimeError(rest[0])
            self._answer(functools.partial(self._do, kind, *rest))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except BaseException:  # its own __str__ may raise anything
        return ""


def write_files(folder: str, files: dict[str, str]) -> None:
    """Write files into a folder: text by path."""
    for path, text in files.items():
        full = os.path.join(folder, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8", newline="") as file:
            file.write(text)

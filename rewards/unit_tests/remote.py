"""The candidate as the tests see it: objects that ask it, over a channel of values. Runs inside sandboxes: only the standard library."""

from __future__ import annotations

import builtins
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from agentrl.rewards.unit_tests.lengths import Lengths
from agentrl.rewards.unit_tests.values import CannotCross, ChannelBroken, decode, encode, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_CALLS = 1_000_000


class NotFound(Exception):
    """The candidate does not define a name."""


class Unsendable(Exception):
    """The tests give the candidate something that cannot cross: the fault of the tests, or of this grader."""


class Answers:
    """Asks the candidate and waits for its answers.

    Args:
        requests: descriptor to write to.
        answers: descriptor to read from.
        in_place: whether changed arguments come back from calls that return something, too.
    """

    def __init__(self, requests: int, answers: int, *, in_place: bool = False) -> None:
        self._in_place = in_place
        self._iterating = False
        self.calls = 0
        """How often it was asked for anything but a name."""
        self.broken = ""
        """Why it can no longer be asked; empty while it can."""
        self._requests, self._answers = requests, answers
        self._functions: list[Callable[..., Any]] = []
        self._lengths = Lengths()

    def load(self) -> None:
        """Wait until its code has run; raises what that raised."""
        self._result(None)

    def find(self, module: str, name: str = "") -> Any:
        """A name of one of its modules, or the module. Raises `NotFound`."""
        return self._ask(["find", module, name])

    def call(self, owner: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call one of its objects; where that returns None, what it has changed in the arguments is then changed in them here."""
        self.calls += 1
        self._lengths.forget()
        return self._ask(
            ["call", owner, [self._encode(one) for one in arguments], {name: self._encode(one) for name, one in named.items()}], arguments
        )

    def operate(self, name: str, owner: int, *arguments: Any) -> Any:
        """Do something to one of its objects."""
        self.calls += 1
        self._iterating = name == "next"
        try:
            found = self._ask(["operate", name, owner, *(self._encode(one) for one in arguments)])
        except StopIteration:
            self._lengths.ended(owner)
            raise
        finally:
            self._iterating = False
        self._note(name, owner, found)
        return found

    def _note(self, name: str, owner: int, found: Any) -> None:
        """Hold an object to its length."""
        if name == "len" and type(found) is int:
            self._lengths.said(owner, found)
        elif name == "iter" and type(found) is CandidateObject:
            self._lengths.started(owner, object.__getattribute__(found, "_number"))
        elif name == "next":
            self._lengths.took(owner)
        elif name in ("setitem", "delitem", "setattr"):
            self._lengths.forget()

    def _ask(self, request: Any, arguments: tuple[Any, ...] = ()) -> Any:
        if self.broken or self.calls > MOST_CALLS:
            raise ChannelBroken(self.broken or f"the tests asked more than {MOST_CALLS} times")
        try:
            send(self._requests, request)
        except CannotCross as error:
            raise (Unsendable if self.calls <= 1 else CannotCross)(str(error)) from None
        except ChannelBroken as error:
            self.broken = str(error)
            raise
        return self._result(arguments)

    def _result(self, arguments: tuple[Any, ...] | None) -> Any:
        try:
            while True:
                answer = receive(self._answers)
                if type(answer) is not list or not answer or type(answer[0]) is not str:
                    raise ChannelBroken("an answer has no form")
                if answer[0] != "call back":
                    return self._take(answer, arguments or ())
                self._call_back(answer)
        except ChannelBroken as error:
            self.broken = str(error)
            raise

    def _take(self, answer: list[Any], arguments: tuple[Any, ...]) -> Any:
        kind, *rest = answer
        if kind == "value" and len(rest) == 2 and type(rest[1]) is list:
            value = self._decode(rest[0])
            for change in rest[1]:
                self._change(change, arguments, take=value is None or self._in_place)
            return value
        if kind == "raised" and len(rest) == 2 and type(rest[0]) is list and type(rest[1]) is str:
            # what ends an iterator would end a `map` of the tests as well, and with it what they check (as in PEP 479)
            raise _exception([name for name in rest[0] if name != "StopIteration" or self._iterating], rest[1])
        if kind == "refused" and len(rest) == 1:
            raise TypeError(f"the candidate's answer cannot be compared: {rest[0]}"[:500])
        if kind == "missing" and len(rest) == 1:
            raise NotFound(str(rest[0])[:500])
        raise ChannelBroken("an answer has no form")

    def _change(self, change: Any, arguments: tuple[Any, ...], *, take: bool) -> None:
        """Bring an argument into the state in which the candidate left its copy, if that is to be taken."""
        if type(change) is not list or len(change) != 2 or type(change[0]) is not int or not 0 <= change[0] < len(arguments):
            raise ChannelBroken("a changed argument has no form")
        old, new = arguments[change[0]], self._decode(change[1])
        if type(old) is not type(new):
            raise ChannelBroken("a changed argument is of another type")
        if not take:
            return
        if type(old) in (list, bytearray):
            old[:] = new
        elif type(old) in (dict, set):
            old.clear()
            old.update(new)
        elif type(old) is deque:
            old.clear()
            old.extend(new)

    def _call_back(self, answer: list[Any]) -> None:
        """Run a function of the tests for the candidate, which was given it."""
        _, number, arguments, named = answer if len(answer) == 4 else (None, -1, [], {})
        if type(number) is not int or not 0 <= number < len(self._functions) or type(arguments) is not list or type(named) is not dict:
            raise ChannelBroken("a call of the tests has no form")
        values = [self._decode(one) for one in arguments]
        keywords = {str(name): self._decode(one) for name, one in named.items()}
        try:
            reply = ["returned", self._encode(self._functions[number](*values, **keywords))]
        except ChannelBroken:
            raise
        except Exception as error:
            reply = ["raised", f"{type(error).__name__}: {error}"[:500]]
        send(self._requests, reply)

    def _encode(self, value: Any) -> Any:
        try:
            return encode(value, self._own)
        except CannotCross as error:
            # later on it may be too large because of what the candidate answered before
            raise (Unsendable if self.calls <= 1 else CannotCross)(str(error)) from None

    def _own(self, value: Any) -> Any:
        if type(value) is CandidateObject:
            return {"t": "object", "v": object.__getattribute__(value, "_number")}
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"t": "builtin", "v": name}
        if callable(value):
            self._functions.append(value)
            return {"t": "function", "v": len(self._functions) - 1}
        raise Unsendable(f"the tests give the candidate a {type(value).__name__}, which cannot cross to it")

    def _decode(self, data: Any) -> Any:
        return decode(data, self._special)

    def _special(self, tag: str, content: Any) -> Any:
        if tag == "object" and type(content) is list and len(content) == 2 and type(content[0]) is int and type(content[1]) is str:
            return CandidateObject(self, content[0], content[1][:100])
        raise ChannelBroken("an answer holds something that is no value")


def _exception(names: list[Any], message: str) -> BaseException:
    """A built-in exception by the names of its class and those above it; the first that is known here."""
    for name in names:
        kind = getattr(builtins, name, None) if type(name) is str else None
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(message)
            except TypeError:  # some take more than a message
                continue
    return Exception(message)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refused(self: CandidateObject, *_: Any) -> NoReturn:
        kind = object.__getattribute__(self, "_kind")
        raise TypeError(f"the candidate gave an object of type {kind!r}, which has no value here ({name})")

    return refused


class CandidateObject:
    """Something of the candidate's that is no plain value: a function, a class, an instance, an iterator.

    It can be called, indexed, iterated over, measured and turned into text, and its public attributes can be read and set. It equals
    nothing, is neither true nor false, and contains nothing: those verdicts would be the candidate's own.
    """

    __slots__ = ("_answers", "_kind", "_number")

    def __init__(self, answers: Answers, number: int, kind: str) -> None:
        object.__setattr__(self, "_answers", answers)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it there."""
        return _answers(self).call(object.__getattribute__(self, "_number"), arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _operate(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _operate(self, "setattr", name, value)

    def __len__(self) -> int:
        length = _operate(self, "len")
        if type(length) is not int or length < 0:
            raise TypeError("the candidate's object has no length")
        return length

    def __getitem__(self, key: Any) -> Any:
        return _operate(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _operate(self, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        _operate(self, "delitem", key)

    def __iter__(self) -> Iterator[Any]:
        found = _operate(self, "iter")
        if type(found) is not CandidateObject:
            raise TypeError("the candidate's object gives no iterator")
        return found

    def __next__(self) -> Any:
        return _operate(self, "next")

    def __str__(self) -> str:
        text = _operate(self, "str")
        if type(text) is not str:
            raise TypeError("the candidate's object gives no text")
        return text

    def __repr__(self) -> str:
        return f"<the candidate's {object.__getattribute__(self, '_kind')}>"

    __eq__ = _refuse("==")
    __ne__ = _refuse("!=")
    __lt__ = _refuse("<")
    __le__ = _refuse("<=")
    __gt__ = _refuse(">")
    __ge__ = _refuse(">=")
    __bool__ = _refuse("bool")
    __contains__ = _refuse("in")
    __hash__ = _refuse("hash")


def _answers(owner: CandidateObject) -> Answers:
    answers: Answers = object.__getattribute__(owner, "_answers")
    return answers


def _operate(owner: CandidateObject, name: str, *arguments: Any) -> Any:
    return _answers(owner).operate(name, object.__getattribute__(owner, "_number"), *arguments)

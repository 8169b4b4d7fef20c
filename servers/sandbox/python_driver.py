"""The inside of a persistent Python session: run as a script in a sandbox, with nothing but the standard library.

Requests come on what was standard input and answers go to what was standard output; a program's own output goes where standard error went.
The code that runs here may do anything to this file: whatever it does, only its own session suffers.
"""

import ast
import contextlib
import linecache
import os
import signal
import sys
import traceback
import types

MOST_FRAMES = 12


def main() -> None:
    """Answer requests until there are no more. A request is `NUMBER SIZE` on a line and the code; an answer is `NUMBER STATUS`."""
    asked, told = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = [""]
    sys.path.insert(0, os.getcwd())
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    own = os.getpid()
    for count, line in enumerate(iter(asked.readline, b""), 1):
        number, size = line.split()
        status = run(asked.read(int(size)).decode("utf-8", errors="replace"), f"<cell {count}>", vars(module))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the code may have closed or replaced it
                stream.flush()
        if os.getpid() != own:
            os._exit(0)  # the code forked, and this is the child that came back
        os.write(told, b"%s %d\n" % (number, status))


def run(code: str, name: str, names: "dict[str, object]") -> int:
    """Run a piece of code; the value of a last expression is shown, an exception is told. Returns 1 after an exception, else 0."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
            body = ast.parse(code, name).body
            last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), name, "exec"), names)
            if last is not None:
                exec(compile(ast.Interactive([last]), name, "single"), names)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            sys.stderr.write(told_error(error))
        return 1
    return 0


def told_error(error: BaseException) -> str:
    """A traceback without this file's frames and without the machine's paths."""
    whole = traceback.TracebackException.from_exception(error, limit=-MOST_FRAMES)
    parts: list[traceback.TracebackException | None] = [whole]
    seen: set[int] = set()
    while parts:
        part = parts.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        kept = [frame for frame in part.stack if frame.filename not in OWN_FILES]
        for frame in kept:
            frame.filename = shortened(frame.filename)
        part.stack[:] = kept
        parts += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or [])]
    return "".join(whole.format())


def shortened(path: str) -> str:
    """A file's path without the folder of the interpreter or of its packages."""
    roots = sorted((root for root in [*sys.path, *LIBRARY] if root), key=len, reverse=True)
    return next((path[len(root) :].lstrip("/") for root in roots if path.startswith(root + "/")), path)


OWN_FILES = ("<string>", __file__ if "__file__" in globals() else "<string>")
LIBRARY = (os.path.dirname(os.__file__), sys.prefix)

if __name__ == "__main__":
    main()

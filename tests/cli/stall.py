"""Run commands that wait at one moment, so that a signal meets them there.

Each line on stdin is a command as JSON: ``words``; ``moment``, which is ``module:function``, where
it waits at the ``n``-th call whose arguments show ``text``, or a module, whose import waits;
``cwd``, ``path`` (of Python), and ``said``, the file for what it prints. It is a fork of this
process, which after ``stall.py warm`` has imported everything. Answers are ``waiting PROCESS`` and
``ended CODE``.
"""

import importlib
import json
import os
import sys
import time
import traceback

ANSWERS = 1


def _answer(*words) -> None:
    os.write(ANSWERS, f"{' '.join(map(str, words))}\n".encode())


def _wait() -> None:
    _answer("waiting", os.getpid())
    time.sleep(100)


class _Import:
    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            _wait()


def _stalled(original, n, text):
    calls = []

    def run(*arguments, **named):
        if text in repr((arguments, named)):
            calls.append(1)
            if len(calls) == n:
                _wait()
        return original(*arguments, **named)

    return run


def _run(words, moment, n, text) -> int:
    from sonde.cli import main

    module, _, name = moment.partition(":")
    if name:
        home = importlib.import_module(module)
        setattr(home, name, _stalled(getattr(home, name), n, text))
    else:
        sys.meta_path.insert(0, _Import(module))
    return main(words)


def _child(cwd, path, said, **asked) -> None:
    global ANSWERS
    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        sys.path.insert(0, cwd)
        os.environ["PYTHONPATH"] = path
        ANSWERS = os.dup(1)
        with open(said, "wb") as file:  # noqa: PTH123  only its number is used
            for standard in (1, 2):
                os.dup2(file.fileno(), standard)
        code = _run(**asked)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main() -> None:
    if "warm" in sys.argv:
        from tools.faults.commands import load

        load()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _child(**json.loads(line))
        _answer("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    _main()

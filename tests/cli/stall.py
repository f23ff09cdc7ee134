"""Run a command that waits at one moment, so that a signal meets it there.

``stall.py MOMENT N TEXT WORDS...``: MOMENT is ``module:function``, which waits at its N-th call
whose arguments show TEXT, or a module, whose import waits.
"""

import importlib
import sys
import time


def _wait() -> None:
    sys.stdout.write("waiting\n")
    sys.stdout.flush()
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


def _main() -> int:
    moment, n, text, *words = sys.argv[1:]
    from sonde.cli import main

    module, _, name = moment.partition(":")
    if name:
        home = importlib.import_module(module)
        setattr(home, name, _stalled(getattr(home, name), int(n), text))
    else:
        sys.meta_path.insert(0, _Import(module))
    return main(words)


if __name__ == "__main__":
    sys.exit(_main())

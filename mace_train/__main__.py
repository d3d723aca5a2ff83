"""``mace-train``, ``python -m mace_train`` and ``torchrun -m mace_train``: the program."""

import os
import sys
from contextlib import suppress

from mace_train import interrupts


def run() -> None:
    """Run the command of the command line; see ``cli.main`` for exit codes."""
    interrupts.install()
    from mace_train.cli import main  # takes long enough to be interrupted

    code: object = 0
    try:
        main()
        sys.stdout.flush()
        interrupted = interrupts.received()
    except KeyboardInterrupt:
        interrupted = True
    except SystemExit as end:
        reader_ended = isinstance(end.__context__, BrokenPipeError)  # rich's way
        code, interrupted = _READER_ENDED if reader_ended else end.code, False
    except BrokenPipeError:  # the reader of the output has ended, such as `| head`
        code, interrupted = _READER_ENDED, False
    except Exception as error:
        interrupted = interrupts.received()  # then what failed was interrupted, too
        code = 1 if interrupted else _say(error)
    if interrupted:
        code = interrupts.EXIT_CODE
        interrupts.say()
    interrupts.end_work(code if isinstance(code, int) else 1)
    try:
        sys.stdout.flush()
    except OSError:  # what is left cannot be written, and would change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)  # type: ignore[arg-type]


def _say(error: Exception) -> int:
    """The exit code after the message of an error of the system; others are raised again."""
    from mace_train.errors import system_error

    explained = system_error(error) if isinstance(error, OSError) else None
    if explained is None:
        raise error
    with suppress(OSError):
        sys.stderr.write(f"mace-train: error: {explained}\n")
    return explained.exit_code


_READER_ENDED = 128 + 13  # SIGPIPE

if __name__ == "__main__":
    run()

"""``mace-train``, ``python -m mace_train`` and ``torchrun -m mace_train``: the program."""

import os
import sys

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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        if not interrupts.received():
            raise
        interrupted = True  # and what failed was interrupted, too
    if interrupted:
        code = interrupts.EXIT_CODE
        interrupts.say()
    interrupts.end_work(code if isinstance(code, int) else 1)
    sys.exit(code)  # type: ignore[arg-type]


_READER_ENDED = 128 + 13  # SIGPIPE

if __name__ == "__main__":
    run()

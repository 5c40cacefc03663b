"""What bad input raises."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a full disk, a quota and a file-size limit answer.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """Something the user can mend: one line that says what, where and how; exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(word: str, known: list[str]) -> str:
    """`, did you mean 'x'?` where something known is close to `word`, else an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean `{close[0]}`?" if close else ""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one it was raised from, says that the disk is full.

    safetensors and torch wrap the system's error in their own and keep only its text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        text = str(error)
        if "No space left on device" in text or "os error 28" in text or "File too large" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk_full_as_user_error(path: Path, mend: str) -> Iterator[None]:
    """Turn a full disk while writing `path` into a UserError that says where and how to go on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError(f"{path}: no space left on the disk; {mend}") from error

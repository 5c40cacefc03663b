"""What every verb's bad input has in common."""

import pytest

from rlhf import cli


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("rlhf: ")
    assert error.count("\n") == 1
    return error

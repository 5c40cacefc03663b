"""checks: numbers and texts by hand, GSM8K's own verdicts, and code that tries to get out of its sandbox."""

import gzip
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.compare import sandbox
from rlhf.compare.checks import Number, code_passes, last_number, normalised, number_matches, text_matches
from rlhf.compare.judges import check_judges
from rlhf.compare.sandbox import CodeResult, Limits, code_block, code_results, run_code
from rlhf.errors import UserError
from rlhf.records import Prompt

SHORT = Limits(seconds=6, cpu_seconds=1, memory_mib=256)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42.", Fraction(42)),
        ("1 then 2, then 3", Fraction(3)),
        ("1,2,3", Fraction(3)),
        ("10,234,567 people", Fraction(10234567)),
        ("12{,}345", Fraction(12345)),
        ("1,234.50", Fraction(2469, 2)),
        ("It costs $.5", Fraction(1, 2)),
        ("3.", Fraction(3)),
        ("it is -7", Fraction(-7)),
        ("it is \u22127", Fraction(-7)),
        ("-$1,000", Fraction(-1000)),
        ("$-3", Fraction(-3)),
        ("5-3", Fraction(3)),
        ("x-3", Fraction(3)),
        ("(2)-3", Fraction(3)),
        ("x = -3", Fraction(-3)),
        ("(-3)", Fraction(-3)),
        ("3/4 of it", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1 1/2 cups", Fraction(3, 2)),
        ("2 4/3", Fraction(4, 3)),
        ("½", Fraction(1, 2)),
        ("2½", Fraction(5, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{1}{2}", Fraction(-1, 2)),
        (r"1\frac12", Fraction(3, 2)),
        ("1.5e-2", Fraction(3, 200)),
        (r"2.5 \times 10^{3}", Fraction(2500)),
        ("2.5 x 10^3", Fraction(2500)),
        (r"So \boxed{7}, as 3 + 4 = 7. Check 8.", Fraction(7)),
        (r"\boxed{1} and \boxed{x = \frac{3}{4}} of 9", Fraction(3, 4)),
        (r"\boxed{\text{12 apples}}", Fraction(12)),
        (r"\boxed{5", Fraction(5)),
        ("#### 18", Fraction(18)),
        ("H2O costs 9", Fraction(9)),
        ("9 for H2O", Fraction(9)),
        ("COVID-19", Fraction(19)),
    ],
)
def test_the_last_number_by_hand(text: str, value: Fraction) -> None:
    assert last_number(text) == Number(value)


@pytest.mark.parametrize("text", ["", "none", "H2O", "five", "1/0", r"\boxed{none} 5", "9" * 500])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "so {}.", "= {} km", r"\boxed{{{}}}", "a 1, b {}"]))
def test_any_integer_with_separators_and_words_around_it(number: int, words: str) -> None:
    assert last_number(words.format(f"{number:,}")) == Number(Fraction(number))


@given(st.decimals(-(10**6), 10**6, places=3))
def test_any_decimal(number: Decimal) -> None:
    assert last_number(f"about {number}") == Number(Fraction(number))


@pytest.mark.parametrize(
    ("reply", "answer", "score"),
    [
        ("50%", 0.5, 1.0),
        ("50%", 50, 1.0),
        ("0.5", "50%", 1.0),
        ("50 percent", "50%", 1.0),
        ("0.5%", "50%", 0.0),
        ("0.5", 50, 0.0),
        ("3.0", 3, 1.0),
        ("0.33", "1/3", 0.0),
        ("2/6", "1/3", 1.0),
        ("-5", 5, 0.0),
        ("I do not know", 5, 0.0),
        ("4", "She has 2 * 2 = 4.\n#### 4", 1.0),
    ],
)
def test_numbers_match_by_hand(reply: str, answer: object, score: float) -> None:
    assert number_matches([None], [reply], answer=[answer]) == [score]


def test_number_matches_agrees_with_gsm8ks_own_verdicts(shared: Path) -> None:
    """Four models' solutions of GSM8K's test questions, each marked right or wrong by its authors."""
    replies, answers, marks = [], [], []
    with gzip.open(shared / "data/gsm8k/example_model_solutions.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
                replies.append(row[name]["solution"])
                answers.append(row["ground_truth"])
                marks.append(float(row[name]["is_correct"]))
    assert len(marks) == 4 * 1319
    assert number_matches([None] * len(replies), replies, answer=answers) == marks


def test_texts_match_by_hand() -> None:
    replies = ["  **Paris.** ", "paris", "Lyon", "“The  Hague”", "-5", "C++"]
    answers = ["Paris", ["Paname", "PARIS"], "Paris", "the hague", "5", "C"]
    assert text_matches([None] * 6, replies, answer=answers) == [1, 1, 0, 1, 0, 0]
    assert normalised("ﬁne\n Ⅳ") == "fine iv"


def test_a_missing_column_says_how_to_mend_it() -> None:
    for judge, column in ((number_matches, "answer"), (text_matches, "answer"), (code_passes, "tests")):
        with pytest.raises(UserError, match=rf"{judge.__name__}: the prompts have no `{column}`; give each one"):
            judge([None], ["5"], topic=["sums"])
    with pytest.raises(ValueError, match="2 values of `answer` for 1 responses"):
        number_matches([None], ["5"], answer=[1, 2])


def test_an_answer_without_a_number() -> None:
    with pytest.raises(UserError, match="number_matches: the answer 'Paris' holds no number; mend"):
        number_matches([None], ["5"], answer=["Paris"])


def test_they_are_judges() -> None:
    meta = {"answer": "4", "tests": "assert two() == 2", "topic": "sums"}
    prompt = Prompt("p", [{"role": "user", "content": "2 + 2?"}], meta)
    check_judges({"number": number_matches, "text": text_matches, "code": code_passes}, [prompt])


# -- code ----------------------------------------------------------------------------------------


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nIt adds."


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the sandboxes' folders are, so that no other test process's are among them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("sandboxes")
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


def left_behind() -> list[str]:
    """Processes that still stand in the folder of a sandbox."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            place = str(link.readlink())
        except OSError:
            continue
        if place.startswith(tempfile.gettempdir()):
            found.append(place)
    return found


def fails(code: str, tests: str = "pass", limits: Limits = SHORT) -> CodeResult:
    result = run_code(code, tests, limits)
    assert not result.passed
    assert left_behind() == []
    return result


def test_right_and_wrong_code() -> None:
    right, wrong = fenced("def add(a, b):\n    return a + b"), fenced("def add(a, b):\n    return a - b")
    tests = ["assert add(1, 0) == 1", "assert add(2, 2) == 4, 'two and two'"]
    assert code_passes([None] * 3, [right, wrong, "I cannot."], tests=[tests, "\n".join(tests), tests]) == [1, 0, 0]
    results = code_results([right, wrong, "I cannot."], ["\n".join(tests)] * 3)
    assert [result.reason for result in results] == [
        "passed",
        "AssertionError: two and two (tests, line 2)",
        "no fenced code block",
    ]
    assert results[2].walls is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(:", r"SyntaxError: invalid syntax \(<reply>, line 1\)"),
        ("import sys\nsys.exit(0)", r"SystemExit: 0 \(reply, line 2\)"),
        ("raise SystemExit", r"SystemExit \(reply, line 1\)"),
        ("import os\nos._exit(0)", r"ended before its tests did \(exit code 0\)"),
        ("import os\nos.abort()", "killed by SIG"),
        ("print('passed', flush=True)\nexit()", "NameError|SystemExit"),
        ("x = '\\ud800'\nraise ValueError(x)", "ValueError"),
        ("\0", "ValueError|SyntaxError"),
    ],
)
def test_code_that_ends_before_its_tests(code: str, reason: str) -> None:
    result = fails(code, "assert False, 'the tests ran'")
    assert re.search(reason, result.reason)


def test_printing_and_guessing_do_not_pass() -> None:
    guess = (
        "import os\nfor number in range(3, 20):\n    try:\n        os.write(number, b'0' * 32)\n"
        "    except OSError:\n        pass\nprint('0' * 32, flush=True)\nos._exit(0)"
    )
    result = fails(guess)
    assert result.reason == "ended before its tests did (exit code 0)"
    assert result.output.startswith("0" * 32)


def test_what_it_writes_itself_breaks_nothing() -> None:
    nested = (
        "import os\nfor number in range(3, 20):\n    try:\n        os.write(number, b'[' * 60000)\n"
        "    except OSError:\n        pass\nos._exit(1)"
    )
    assert fails(nested).reason == "ended before its tests did (exit code 1)"


def test_an_endless_wait() -> None:
    assert fails("import time\ntime.sleep(60)", limits=Limits(seconds=1)).reason == "still ran after 1 s"


def test_an_endless_loop_that_ignores_signals() -> None:
    code = "import signal\nfor number in (1, 2, 15, 24):\n    signal.signal(number, signal.SIG_IGN)\nwhile True: pass"
    assert fails(code).reason == "used more than 1 s of processor time"


def test_a_fork_bomb() -> None:
    code = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError as error:\n        last = error"
    assert "processor time" in fails(code).reason


def test_no_process_no_program_no_thread() -> None:
    assert "PermissionError" in fails("import subprocess\nsubprocess.run(['true'])").reason
    assert "PermissionError" in fails("import os\nos.execv('/bin/true', ['true'])").reason
    assert "can't start new thread" in fails("import threading\nthreading.Thread(target=print).start()").reason
    assert "PermissionError" in fails("import os\nos.kill(os.getppid(), 0)").reason


def test_a_memory_bomb() -> None:
    assert "MemoryError" in fails("rows = []\nwhile True:\n    rows.append(bytearray(2**24))").reason


def test_a_huge_file_and_endless_printing() -> None:
    assert "File too large" in fails("with open('big', 'wb') as out:\n    out.write(bytes(2**22))").reason
    result = fails("while True:\n    print('x' * 1000)")
    assert len(result.output) == 2000


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import urllib.request\nurllib.request.urlopen('http://1.1.1.1', timeout=1)",
    ],
)
def test_no_network(code: str) -> None:
    result = fails(code)
    assert "not permitted" in result.reason
    assert result.walls is not None and "system-call filter" in result.walls


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has a second set of call numbers")
def test_the_calls_of_x32_are_refused_too() -> None:
    # socket() by x32's number: without the filter the kernel answers ENOSYS, or opens it.
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.syscall(0x40000000 + 41, 2, 1, 0) == -1\nraise OSError(ctypes.get_errno(), 'refused')"
    )
    assert fails(code).reason == "PermissionError: [Errno 1] refused (reply, line 4)"


def test_an_empty_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = """
import os, sys
assert "HF_TOKEN" not in os.environ
assert set(os.environ) <= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LC_CTYPE"}
assert os.listdir(".") == []
assert sys.stdin.read() == ""
os.lseek(0, 0, os.SEEK_SET)
assert os.read(0, 1) == b""  # what it was given is gone, not merely read
assert sys.argv == ["-c"]
assert os.getcwd() not in sys.path and "" not in sys.path
open("note", "w").write("x")
"""
    for _ in range(2):  # the second finds nothing of the first
        assert run_code(code, "pass", SHORT).reason == "passed"
    assert list(place.iterdir()) == []


def test_ordinary_code_runs() -> None:
    code = """
import asyncio, collections, dataclasses, functools, json, math, re, typing
import numpy as np

@dataclasses.dataclass
class Point:
    x: "int"

async def later() -> int:
    await asyncio.sleep(0)
    return 3

if __name__ == "__main__":
    input()
"""
    tests = "assert asyncio.run(later()) == 3 and Point(1).x == 1 and np.ones(3).sum() == 3"
    assert run_code(code, tests).reason == "passed"


def test_without_a_filter_it_says_so_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_DENIED", {})
    code = "import os, time\ntry:\n    if os.fork() == 0:\n        time.sleep(600)\nexcept OSError:\n    pass"
    with pytest.warns(UserWarning, match="allows no system-call filter, so code .* the network is (open|closed)"):
        assert code_passes([None], [fenced(code)], tests=["pass"]) == [1.0]
    until = time.monotonic() + 10  # it was killed, not waited for: init does that
    while left_behind() and time.monotonic() < until:
        time.sleep(0.01)
    assert left_behind() == []


@pytest.mark.slow
def test_folders_deeper_than_python_goes(place: Path) -> None:
    code = "import os\nfor _ in range(1100):\n    os.mkdir('d')\n    os.chdir('d')"
    assert run_code(code, "pass", SHORT).reason == "passed"
    assert list(place.iterdir()) == []


def test_a_sandbox_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_CHILD", "raise SystemExit('no such library')")
    with pytest.raises(UserError, match=r"code_passes: the sandbox did not start \(no such library\)"):
        run_code("", "")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="code_passes: runs code on Linux only"):
        run_code("", "")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", None),
        ("```python\na\n```\nand\n```py\nb\n```", "b"),
        ("```python\na\n```\nprints\n```\nb\n```", "a"),
        ("```\na\n```\n```\nb\n```", "b"),
        ("```bash\nls\n```", None),
        ("```Python\na", "a"),
        ("~~~python\na\n```\nb\n~~~", "a\n```\nb"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("1. First\n   ```python\n   a = 1\n   ```", "a = 1"),
        ("``` python\na\n```", "a"),
        ("use `a` and ```b``` here", None),
        ("```b``` is the call\n```python\na\n```", "a"),
    ],
)
def test_the_last_block_by_hand(text: str, code: str | None) -> None:
    assert code_block(text) == code

"""Code out of replies, run with its tests under the limits that this machine allows: no network, no other process.

It stops accidents and plain attacks, not somebody who writes code against this very judge: see `run_code`.
"""

import json
import os
import platform
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rlhf.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What the code of a reply may use; it may never start a process or a thread."""

    seconds: float = 10.0  # by the clock
    cpu_seconds: int = 5
    memory_mib: int = 1024  # of address space
    file_mib: int = 1  # the largest file that it writes; what it prints is one


@dataclass(frozen=True)
class CodeResult:
    """How the code of one reply did.

    `reason` says in a line why it failed, or "passed". `output` is the start of what it printed. `walls`
    are those that this machine allowed: "network namespace" and "system-call filter"; the network is closed
    by either, other processes are out of reach behind the filter only. None where nothing ran.
    """

    passed: bool
    reason: str
    output: str = ""
    walls: tuple[str, ...] | None = None


DEFAULT_LIMITS = Limits()
_OUTPUT_CHARACTERS = 2000
_PYTHON = {"python", "python3", "py"}
# Nothing of the user's, and no library that starts a thread per core, which it may not.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# By machine: its AUDIT_ARCH (linux/audit.h) and the numbers of what is denied (asm/unistd.h): socket;
# clone, clone3, fork, vfork, execve, execveat; kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo,
# pidfd_send_signal; ptrace, process_vm_readv, process_vm_writev; io_uring_setup, which opens sockets too.
_DENIED = {
    "x86_64": (0xC000003E, (41, 56, 435, 57, 58, 59, 322, 62, 200, 234, 129, 297, 424, 101, 310, 311, 425)),
    "aarch64": (0xC00000B7, (198, 220, 435, 221, 281, 129, 130, 131, 138, 240, 424, 117, 270, 271, 425)),
}

# Runs in the subprocess. The token is read after the tests only: until then it is in no variable, frame,
# argument or file, so that ending early or printing proves nothing.
_CHILD = r"""
import ctypes, json, os, resource, struct, sys, types

def confine(job):
    for name, value in job["limits"].items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    libc, none = ctypes.CDLL(None), ctypes.c_ulong(0)
    walls = []
    # CLONE_NEWUSER | CLONE_NEWNET needs no right where the machine allows it; CLONE_NEWNET needs root's.
    if libc.unshare(0x50000000) == 0 or libc.unshare(0x40000000) == 0:
        walls.append("network namespace")
    lines = bytes.fromhex(job["filter"])
    if lines:
        buffer = ctypes.create_string_buffer(lines)
        program = ctypes.create_string_buffer(struct.pack("HP", len(lines) // 8, ctypes.addressof(buffer)))
        # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER
        if libc.prctl(38, ctypes.c_ulong(1), none, none, none) == 0:
            if libc.prctl(22, ctypes.c_ulong(2), program, none, none) == 0:
                walls.append("system-call filter")
    return walls

def why(error):
    where, at = "", error.__traceback__
    while at:
        name = at.tb_frame.f_code.co_filename
        if name in ("<reply>", "<tests>"):
            where = f" ({name[1:-1]}, line {at.tb_lineno})"
        at = at.tb_next
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    return " ".join(text.split())[:200] + where

def run():
    job = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    token, verdict = job["token"], job["verdict"]
    os.write(verdict, (json.dumps(confine(job)) + "\n").encode())
    module = sys.modules["reply"] = types.ModuleType("reply")
    try:
        for name in ("reply", "tests"):
            exec(compile(job[name], f"<{name}>", "exec"), module.__dict__)
    except BaseException as error:
        os.write(verdict, json.dumps(why(error)).encode())
        os._exit(1)
    os.write(verdict, os.read(token, 64))
    os._exit(0)

run()
"""


def code_results(responses: Sequence[str], tests: Sequence[str], limits: Limits = DEFAULT_LIMITS) -> list[CodeResult]:
    """How the code of every reply does in its tests, as many at a time as there are processors."""

    def one(response: str, test: str) -> CodeResult:
        code = code_block(response)
        return CodeResult(False, "no fenced code block") if code is None else run_code(code, test, limits)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, responses, tests))


def code_block(text: str) -> str | None:
    """The last fenced block marked as Python, else the last one without a mark; None where there is neither.

    A fence that never closes reaches to the end: a reply may be cut, and many models forget the last one.
    """
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.splitlines():
        opening = re.match(r"\s*(`{3,}|~{3,})\s*([^\s`]*)[^`]*$", line)
        if fence:
            if opening and opening[1].startswith(fence) and not opening[2]:
                fence = ""
            else:
                blocks[-1][1].append(line)
        elif opening:
            fence = opening[1]
            blocks.append((opening[2].lower(), []))
    for marks in (_PYTHON, {""}):
        found = [lines for mark, lines in blocks if mark in marks]
        if found:
            return textwrap.dedent("\n".join(found[-1]))
    return None


def run_code(code: str, tests: str, limits: Limits = DEFAULT_LIMITS) -> CodeResult:
    """Run `tests` after `code` in one module of a subprocess of its own, and say whether they passed.

    `python -I` in an empty folder, without the user's environment, input, arguments or network, under
    `limits`; a filter denies it processes, threads, programs, signals and sockets (Linux on x86-64 and ARM;
    see `CodeResult.walls`). Past its seconds the whole process group is killed. It passed only where a random
    token comes back, which the subprocess reads once the last test is over.

    Where the machine allows no filter, root's code may start processes, and one that leaves its group outlives
    the run. What nothing here stops: code that reads every file that you can read and writes where you can
    write; many small files, while the time lasts; code written against this very judge, which answers the
    tests by looking at them in memory, makes objects that equal everything, or reads the token off its
    descriptor. For replies that may be hostile, run the comparison in a container.

    Raises UserError where the sandbox does not start.
    """
    if not sys.platform.startswith("linux"):
        raise UserError("code_passes: runs code on Linux only; run the comparison there, or in a container")
    token = secrets.token_hex(16)
    token_read, token_write = os.pipe()
    verdict_read, verdict_write = os.pipe()
    folder = tempfile.mkdtemp(prefix="rlhf-code-")
    try:
        os.write(token_write, token.encode())
        job = {
            "reply": code,
            "tests": tests,
            "token": token_read,
            "verdict": verdict_write,
            "limits": _rlimits(limits),
            "filter": _filter().hex(),
        }
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
            given.write(json.dumps(job).encode())
            given.seek(0)
            ended = _run(given, printed, (token_read, verdict_write), folder, limits.seconds)
            printed.seek(0)
            output = printed.read(4 * _OUTPUT_CHARACTERS).decode(errors="replace")
        os.set_blocking(verdict_read, False)
        said = b""
        with suppress(BlockingIOError):
            said = os.read(verdict_read, 65536)
        return _result(ended, said.decode(errors="replace"), token, output, limits)
    finally:
        for descriptor in (token_read, token_write, verdict_read, verdict_write):
            os.close(descriptor)
        with suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
        if Path(folder).exists():  # folders deeper than Python goes
            subprocess.run(["rm", "-rf", folder], check=False)


def _run(given: IO[bytes], printed: IO[bytes], keep: tuple[int, int], folder: str, seconds: float) -> int | None:
    """The exit code of the subprocess, None where its time ran out; nothing of its group is left."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _CHILD],
        stdin=given,
        stdout=printed,
        stderr=printed,
        cwd=folder,
        env=_ENVIRONMENT,
        pass_fds=keep,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _result(ended: int | None, said: str, token: str, output: str, limits: Limits) -> CodeResult:
    first, _, rest = said.partition("\n")
    if not first and ended is not None:
        raise UserError(f"code_passes: the sandbox did not start ({output.strip()[-200:] or f'exit code {ended}'})")
    walls = tuple(json.loads(first)) if first else None
    if ended is None:
        reason = f"still ran after {limits.seconds:g} s"
    elif ended == 0 and rest == token:
        return CodeResult(True, "passed", output[:_OUTPUT_CHARACTERS], walls)
    elif ended in (-signal.SIGXCPU, -signal.SIGKILL):
        reason = f"used more than {limits.cpu_seconds} s of processor time"
    elif ended < 0:
        reason = f"killed by {signal.Signals(-ended).name}"
    else:
        reason = f"ended before its tests did (exit code {ended})"
        with suppress(ValueError, RecursionError):  # whatever the code wrote itself
            reason = str(json.loads(rest))[:300].encode(errors="replace").decode()
    return CodeResult(False, reason, output[:_OUTPUT_CHARACTERS], walls)


def _rlimits(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_AS": limits.memory_mib * 2**20,
        "RLIMIT_FSIZE": limits.file_mib * 2**20,
        # None beside itself: any other number would count what else the user runs. The kernel exempts root,
        # whom the filter stops.
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 64,
    }


def _filter() -> bytes:
    """A seccomp filter (seccomp(2); struct sock_filter) that answers EPERM to what `_DENIED` lists, else empty."""
    arch, numbers = _DENIED.get(platform.machine(), (0, ()))
    if not numbers:
        return b""
    load, jump_equal, jump_at_least, answer = 0x20, 0x15, 0x35, 0x06
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050001
    lines = [(load, 0, 0, 4), (jump_equal, 1, 0, arch), (answer, 0, 0, kill), (load, 0, 0, 0)]
    lines.append((jump_at_least, len(numbers) + 1, 0, 0x40000000))  # x32's numbers for the same calls
    lines += [(jump_equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    lines += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)

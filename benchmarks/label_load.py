"""The labeling app under load, killed in the middle of it, and beside Potato and Label Studio.

    python benchmarks/label_load.py                               load, then survive, on SQLite
    python benchmarks/label_load.py --only survive --postgres     on PostgreSQL too, on a server of its own or a URL's
    python benchmarks/label_load.py --only load --peer            Potato and Label Studio, turn by turn with ours

load: clients that submit as fast as the server lets them, each with its own cookie, on the same machine. A submit of
ours brings the next task with its receipt; a turn is that and what the widget asks after every fifth (the JSON also
has turns with a draft saved on the way). Of the peers the annotation's POST alone is the submit, and submit, move on,
page open the turn. Clients' own cost is measured against a server that does nothing. Memory is PSS of the server's
whole process tree, in megabytes of 10^6 bytes. survive: see label_survive.py; peers: see label_peers.py.

One line of JSON on stdout, a table on stderr, and the JSON in --out. Stops by itself, removes what it made but for the
peers' environments. Exit code 1 where a label was lost, doubled, altered or one too many.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from label_clients import Browser, Lost, Step, crowd, milliseconds, run_loop
from label_ours import Annotator, desk_server, durability, make_people, open_page, pair_tasks
from label_peer_studio import OVERLAP
from label_peers import PEERS, install, peer
from label_servers import Server
from label_survive import Plan, own_postgres, scratch_database, survive
from label_table import load_line, ratios, table

from rlhf.records import Task

WARM = 1.0  # seconds that are not counted
NUM_PAGES = 20  # openings of the page, by as many people
PAIRS = Path(__file__).parents[2] / "shared/data/hh-rlhf/harmless-base.test.jsonl.gz"


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    result: dict[str, Any] = {"machine": machine(), "clients_alone": clients_alone(arguments.seconds / 2)}
    with tempfile.TemporaryDirectory(prefix="label-load-", ignore_cleanup_errors=True) as scratch:
        folders = (Path(scratch) / f"{number}" for number in range(10_000))
        if arguments.only in (None, "load"):
            result["load"] = load(arguments, lambda: next(folders))
            result["ratios"] = ratios(result["load"])
        if arguments.only in (None, "survive"):
            result["survive"] = survive_all(arguments, lambda: next(folders))
    print(json.dumps(result))
    print(table(result), file=sys.stderr)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    if any(run["problems"] or run["refusals"] for run in result.get("survive", [])):
        sys.exit(1)


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["load", "survive"])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 10, 1])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement, after a warm-up of 1")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is measured, in turn")
    parser.add_argument("--num_tasks", type=int, default=12_000)
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="Anthropic HH's file; made up texts where it is not")
    parser.add_argument("--peer", nargs="*", choices=PEERS, help="which peers (alone: potato and label-studio)")
    parser.add_argument("--venvs", type=Path, default=Path("runs/label-peers"), help="the peers' environments")
    parser.add_argument(
        "--postgres", nargs="?", const="", help="survive on this PostgreSQL server too (no URL: on one of its own)"
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rankings", type=int, default=5000)
    parser.add_argument("--survivors", type=int, default=100, help="clients of survive")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.peer == []:
        arguments.peer = ["potato", "label-studio"]
    return arguments


def machine() -> dict[str, Any]:
    """Where it was measured."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    packages = ("gradio", "fastapi", "uvicorn", "sqlalchemy")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def clients_alone(seconds: float) -> dict[str, Any]:
    """What a hundred clients do with a server that does nothing: no figure here can be over it."""
    script = Path(__file__).with_name("label_clients.py")
    with (
        tempfile.TemporaryDirectory() as folder,
        Server([sys.executable, str(script), "{port}"], Path(folder), "/") as server,
    ):
        browsers = [Browser(server.port) for _ in range(100)]

        async def step(browser: Browser) -> tuple[int, float]:
            reply = await browser.post("/", {"ranks": [1, 2], "text": "x" * 200})
            return reply.status, reply.seconds

        steps: list[Step] = [partial(step, browser) for browser in browsers]
        tally = run_loop(crowd(steps, WARM, seconds, 10**9))
    cost = round(1e6 * tally.cpu / max(1, len(tally.seconds)))
    return {"requests_per_second": tally.summary()["per_second"], "microseconds_of_cpu_per_request": cost}


def load(arguments: argparse.Namespace, new_folder: Callable[[], Path]) -> list[dict[str, Any]]:
    """Every system with every number of clients, in turn, `rounds` times."""
    tasks = pair_tasks(arguments.pairs, arguments.num_tasks)
    venvs = {name: install(name, arguments.venvs.resolve()) for name in arguments.peer or []}
    rows = []
    for round_number in range(arguments.rounds):
        for num_clients in arguments.clients:
            row = load_ours(new_folder(), tasks, num_clients, arguments.seconds)
            rows.append({"round": round_number, **row})
            print(load_line(row), file=sys.stderr, flush=True)
            for name, venv in venvs.items():
                row = load_peer(name, venv, new_folder(), tasks, num_clients, arguments.seconds)
                rows.append({"round": round_number, **row})
                print(load_line(row), file=sys.stderr, flush=True)
    return rows


def load_ours(folder: Path, tasks: Sequence[Task], num_clients: int, seconds: float) -> dict[str, Any]:
    """Our server on a new SQLite store."""
    folder.mkdir()
    url = f"sqlite:///{folder}/labels.db"
    cookies = list(make_people(url, [f"person-{at:03d}" for at in range(num_clients + NUM_PAGES)]).values())
    with desk_server(folder, url, tasks, OVERLAP, 1800) as server:
        people = [Annotator(server.port, cookie, at) for at, cookie in enumerate(cookies[:num_clients])]

        num_places = min(OVERLAP, num_clients) * len(tasks)

        async def drive() -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
            for one in people:
                await one.enter()
            found = []
            for kind in ("submit", "one_turn", "turn_with_draft"):
                steps: list[Step] = [getattr(one, kind) for one in people]
                found.append(await measured(server, steps, seconds, num_places // 3))
            return found, [await open_page(server.port, cookie) for cookie in cookies[num_clients:]]

        (submits, turns, turns_with_draft), pages = run_loop(drive())
    parts = {name: milliseconds(median(page[name] for page in pages)) for name in pages[0]}
    return {
        "system": "rlhf label",
        "settings": durability(url),
        "clients": num_clients,
        "submit": submits,
        "turn": turns,
        "turn_with_draft": turns_with_draft,
        "page_ms": parts.pop("all"),
        "page_parts_ms": parts,
        "memory_mb": round(server.peak_pss),
        "memory_rss_mb": round(server.peak_rss),
    }


async def measured(server: Server, steps: Sequence[Step], seconds: float, most: int) -> dict[str, Any]:
    """A crowd's figures, and how many cores the server took for them: the machine may have had other work too."""
    begin, start = server.cpu_seconds(), time.perf_counter()
    tally = await crowd(steps, WARM, seconds, most)
    cores = (server.cpu_seconds() - begin) / (time.perf_counter() - start)
    found = tally.summary()
    rate = round(found["per_second"] / cores, 1) if cores else None
    return {**found, "server_cores": round(cores, 2), "per_core_second": rate}


def load_peer(
    name: str, venv: Path, folder: Path, tasks: Sequence[Task], num_clients: int, seconds: float
) -> dict[str, Any]:
    """A peer on the same tasks: full turns, then submits alone, then its page."""
    server, people, settings = peer(name, venv, folder, tasks, num_clients)
    with server:

        async def drive() -> tuple[dict[str, Any], dict[str, Any], list[float]]:
            for one in people:
                await one.enter()
            turns = await measured(server, [one.turn for one in people], seconds, 10**9)
            submits = await measured(server, [one.submit for one in people], seconds, 10**9)
            await asyncio.sleep(1)
            pages = []
            for at in range(NUM_PAGES):
                try:
                    pages.append(await people[at % num_clients].page())
                except Lost as error:
                    print(f"{name}: page: {error}", file=sys.stderr)
            return turns, submits, pages

        turns, submits, pages = run_loop(drive())
    return {
        "system": name,
        "settings": settings,
        "clients": num_clients,
        "submit": submits,
        "turn": turns,
        "page_ms": milliseconds(median(pages)) if pages else None,
        "memory_mb": round(server.peak_pss),
        "memory_rss_mb": round(server.peak_rss),
    }


def survive_all(arguments: argparse.Namespace, new_folder: Callable[[], Path]) -> list[dict[str, Any]]:
    """On SQLite, and on PostgreSQL where a server is named."""
    overlap = 5
    num_tasks = -(-arguments.rankings // overlap)
    plan = Plan(arguments.survivors, num_tasks, overlap, arguments.kills)
    folder = new_folder()
    folder.mkdir()
    runs = [survive(folder, f"sqlite:///{folder}/labels.db", plan)]
    if arguments.postgres is not None:
        folder = new_folder()
        folder.mkdir()
        with scratch_database(arguments.postgres) if arguments.postgres else own_postgres() as url:
            runs.append(survive(folder, url, replace(plan, seed=1)))
    return runs


if __name__ == "__main__":
    main()

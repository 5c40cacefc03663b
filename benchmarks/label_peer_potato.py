"""Potato 2.12 as a peer: a project of pairs, its people, and the requests of its page."""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

import yaml
from label_clients import Browser, Reply
from label_ours import prompt_text, under_400
from label_servers import Server

from rlhf.records import Task


def potato(
    name: str, venv: Path, folder: Path, tasks: Sequence[Task], num_people: int
) -> tuple[Server, list["PotatoAnnotator"], str]:
    quota = min(len(tasks), max(60, 3000 // num_people))  # its state of a person is rewritten with every answer
    rows = [{"id": task.id, "text": prompt_text(task), "responses": [r.text for r in task.responses]} for task in tasks]
    (folder / "data").mkdir()
    (folder / "data/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scheme = {
        "annotation_type": "pairwise",
        "name": "preference",
        "description": "Which response is better?",
        "mode": "binary",
        "items_key": "responses",
        "allow_tie": True,
        "label_requirement": {"required": True},
    }
    config = {
        "annotation_task_name": "pairs",
        "task_dir": ".",
        "output_annotation_dir": "annotation_output",
        "data_files": ["data/tasks.jsonl"],
        "item_properties": {"id_key": "id", "text_key": "text"},
        "user_config": {"allow_all_users": True, "users": []},
        "require_password": False,
        "assignment_strategy": "fixed_order",
        "max_annotations_per_user": quota,
        "num_annotators_per_item": num_people,
        "annotation_schemes": [scheme],
        "secret_key": secrets.token_hex(32),
        "site_dir": "default",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if name == "potato":
        factory = "potato.flask_server:create_app('config.yaml')"
        command = [str(venv / "bin/gunicorn"), "--bind", "127.0.0.1:{port}", "--workers", "1", "--threads", "8"]
        command += ["--timeout", "120", "--access-logfile", "-", "--error-logfile", "-", factory]
        settings = "gunicorn, 1 worker, 8 threads (its Docker image); a JSON file a person, fsync"
    else:
        command = [str(venv / "bin/potato"), "start", "config.yaml", "-p", "{port}", "--host", "127.0.0.1"]
        settings = "`potato start` (Werkzeug); a JSON file a person, fsync"
    server = Server(command, folder, "/health")
    return (
        server,
        [PotatoAnnotator(server.port, at, [t.id for t in tasks[:quota]]) for at in range(num_people)],
        settings,
    )


class PotatoAnnotator:
    """static/annotation.js of 2.12: saveAnnotations, then navigateToNext, then a new page."""

    def __init__(self, port: int, number: int, assigned: list[str]) -> None:
        self.browser = Browser(port)
        self.name = f"person-{number:03d}"
        self.at = 0
        self.assigned = assigned  # the same for all, in the file's order
        self.alone = assigned[len(assigned) // 2 :]  # answered without moving on

    async def enter(self) -> None:
        form = urlencode({"email": self.name, "pass": ""}).encode()
        await under_400(self.browser.send("POST", "/auth", form, "application/x-www-form-urlencoded"))
        page = await under_400(self.browser.get("/annotate"))
        assert self.assigned[0].encode() in page.body, "the first task is not on the page"

    async def submit(self) -> tuple[int, float] | None:
        if not self.alone:
            return None
        reply = await self._save(self.alone.pop())
        return reply.status, reply.seconds

    async def turn(self) -> tuple[int, float] | None:
        if self.at >= len(self.assigned) // 2 - 1:
            return None
        saved = await self._save(self.assigned[self.at])
        if saved.status != 200:
            return saved.status, saved.seconds
        self.browser.headers["X-Potato-Navigation"] = "1"
        moved = await self.browser.post("/annotate", {"action": "next_instance", "instance_id": self.assigned[self.at]})
        del self.browser.headers["X-Potato-Navigation"]
        if moved.status != 200:
            return moved.status, saved.seconds + moved.seconds
        self.at += 1
        page = await self.browser.get("/annotate")
        if page.status == 200 and self.assigned[self.at].encode() not in page.body:
            return 599, page.seconds  # not the task that comes next
        return page.status, saved.seconds + moved.seconds + page.seconds

    async def page(self) -> float:
        self.browser.close()
        return (await under_400(self.browser.get("/annotate"))).seconds

    async def _save(self, task: str) -> Reply:
        body = {
            "instance_id": task,
            "annotations": {"preference:selection": "AB"[secrets.randbelow(2)]},
            "cleared_schemas": [],
            "span_annotations": [],
            "client_timestamp": "2026-11-21T12:00:00.000Z",
            "response_time_seconds": 12.5,
        }
        return await self.browser.post("/updateinstance", body)

"""Label Studio 1.23 as a peer: a project of pairs, its people, and the requests of its label stream."""

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree

from label_clients import Browser, Reply
from label_ours import prompt_text, under_400
from label_servers import Server

from rlhf.records import Task

OVERLAP = 3
# No word to its makers, no look for a newer version.
_QUIET = {"COLLECT_ANALYTICS": "0", "LATEST_VERSION_CHECK": "0", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
_CONFIG = (
    '<View><Text name="prompt" value="$prompt"/><Pairwise name="better" toName="a,b"/>'
    '<Text name="a" value="$a"/><Text name="b" value="$b"/></View>'
)
# Runs in Label Studio's own environment: tables, an organization, people with sessions, a project, its tasks.
_SETUP = """
import json, sys, time
from label_studio.server import _apply_database_migrations, _setup_env
_setup_env()
_apply_database_migrations()
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.test import Client
from organizations.models import Organization
from users.models import User

plan = json.load(open(sys.argv[1]))
people = [User.objects.create_user(email=f"person{at}@example.com", password=None) for at in range(plan["num_people"])]
organization = Organization.create_organization(created_by=people[0], title="Label Studio")
cookies = []
for person in people:
    organization.add_user(person)
    person.active_organization = organization
    person.save()
    session = SessionStore()
    session[SESSION_KEY] = str(person.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = person.get_session_auth_hash()
    session["last_login"] = time.time()
    session.save()
    cookies.append(session.session_key)
client = Client(SERVER_NAME="127.0.0.1")
client.cookies["sessionid"] = cookies[0]
made = client.post("/api/projects/", json.dumps(plan["project"]), content_type="application/json")
assert made.status_code == 201, made.content
project = made.json()["id"]
url = f"/api/projects/{project}/import?return_task_ids=1"
done = client.post(url, json.dumps(plan["tasks"]), content_type="application/json")
assert done.status_code == 201, done.content
json.dump({"cookies": cookies, "project": project, "tasks": done.json()["task_ids"]}, open(sys.argv[2], "w"))
"""


def label_studio(
    name: str, venv: Path, folder: Path, tasks: Sequence[Task], num_people: int
) -> tuple[Server, list["LabelStudioAnnotator"], str]:
    rows = [{"prompt": prompt_text(task), "a": task.responses[0].text, "b": task.responses[1].text} for task in tasks]
    project = {"title": "pairs", "label_config": _CONFIG, "maximum_annotations": OVERLAP}
    plan = {"num_people": num_people, "tasks": [{"data": row} for row in rows], "project": project}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "setup.py").write_text(_SETUP)
    environment = {**_QUIET, "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"), "DJANGO_DB": "sqlite"}
    made = venv.parent / f"label-studio-made-{num_people}-{len(tasks)}"  # its tables take a minute to make
    package = next(venv.glob("lib/python*/site-packages/label_studio"))
    if not made.exists():
        setup = Server([], folder, "", environment).environment
        command = [str(venv / "bin/python"), "setup.py", "plan.json", "made.json"]
        subprocess.run(command, cwd=folder, env=setup, check=True, stdout=sys.stderr)
        (folder / "made.json").rename(folder / "data/made.json")
        copytree(folder / "data", made)
    else:
        copytree(made, folder / "data")
    found = json.loads((folder / "data/made.json").read_text())
    if name == "label-studio":
        settings = "uWSGI, 4 processes (its Docker image: 2 a core); SQLite, its default"
        environment |= {"DJANGO_SETTINGS_MODULE": "core.settings.label_studio", "APP_WEBSERVER": "uwsgi"}
        options = "master cheaper single-interpreter need-app vacuum die-on-term thunder-lock lazy-apps enable-threads"
        options += " ignore-sigpipe ignore-write-errors disable-write-exception disable-logging"
        values = {"http": "127.0.0.1:{port}", "chdir": str(package), "module": "core.wsgi:application"}
        values |= {"processes": "4", "threads": "1", "buffer-size": "65535", "http-timeout": "300", "harakiri": "120"}
        values |= {"post-buffering": "4096", "max-requests": "5000", "reload-on-rss": "2048", "home": str(venv)}
        command = [str(venv / "bin/uwsgi"), *(f"--{option}" for option in options.split())]
        command += [f"--{option}={value}" for option, value in values.items()]
    else:
        settings = "`label-studio start` (Django's runserver); SQLite, its default"
        command = [str(venv / "bin/label-studio"), "start", "-b", "--port", "{port}", "--internal-host", "127.0.0.1"]
    server = Server(command, folder, "/health", environment)
    people = [
        LabelStudioAnnotator(server.port, cookie, found["project"], found["tasks"][at::num_people], name)
        for at, cookie in enumerate(found["cookies"])
    ]
    return server, people, settings


class LabelStudioAnnotator:
    """The label stream of 1.23: an annotation is posted, then the data manager's `next_task` gives the next task."""

    def __init__(self, port: int, cookie: str, project: int, alone: list[int], name: str) -> None:
        token = secrets.token_hex(16)
        self.browser = Browser(port, {"sessionid": cookie, "csrftoken": token}, keep_alive=name.endswith("-start"))
        self.browser.headers["X-CSRFToken"] = token
        self.project, self.alone = project, alone[::-1]
        self.task: int | None = None

    async def enter(self) -> None:
        self.task = (await under_400(self._next())).json()["id"]

    async def submit(self) -> tuple[int, float] | None:
        if not self.alone:
            return None
        reply = await self._save(self.alone.pop())
        return reply.status, reply.seconds

    async def turn(self) -> tuple[int, float] | None:
        seconds = 0.0
        if self.task is not None:
            saved = await self._save(self.task)
            seconds = saved.seconds
            if saved.status != 201:
                return saved.status, seconds
        following = await self._next()
        self.task = following.json()["id"] if following.status == 200 else None
        return None if following.status == 404 else (following.status, seconds + following.seconds)

    async def page(self) -> float:
        self.browser.close()
        shell = await under_400(self.browser.get(f"/projects/{self.project}/data?labeling=1"))
        about = await under_400(self.browser.get(f"/api/projects/{self.project}/"))
        return shell.seconds + about.seconds + (await under_400(self._next())).seconds

    async def _next(self) -> Reply:
        return await self.browser.post(f"/api/dm/actions?id=next_task&project={self.project}", {})

    async def _save(self, task: int) -> Reply:
        side = ("left", "right")[secrets.randbelow(2)]
        result = {"from_name": "better", "to_name": "a,b", "type": "pairwise", "value": {"selected": side}}
        body = {
            "lead_time": 12.5,
            "result": [{"id": secrets.token_hex(5), **result}],
            "draft_id": 0,
            "project": self.project,
        }
        return await self.browser.post(f"/api/tasks/{task}/annotations/?project={self.project}", body)

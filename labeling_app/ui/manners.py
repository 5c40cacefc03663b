"""What every answer of the app has: headers that keep the page to itself, and a way to the login for who has none."""

from typing import Any
from urllib.parse import quote

# Gradio's page has inline scripts of its own, so scripts cannot be narrowed further here; texts are
# harmless before they get this far (labeling_app/render.py). Nothing is fetched from other machines.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
}


class Manners:
    """ASGI middleware; headers that a route has set stay as they are."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, and see to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        to_login = _login_address(scope)
        redirected = False

        async def polite(message: Any) -> None:
            nonlocal redirected
            if message["type"] == "http.response.start":
                if message["status"] == 401 and to_login is not None:
                    redirected = True
                    message = {"type": "http.response.start", "status": 303, "headers": [(b"location", to_login)]}
                there = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in _HEADERS.items() if name not in there]
                message = message | {"headers": [*message["headers"], *more]}
            elif redirected and message["type"] == "http.response.body":
                message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
            await send(message)

        await self.app(scope, receive, polite)


def _login_address(scope: Any) -> bytes | None:
    """Where to send somebody who opens a page without a session; None for what is no page."""
    headers = dict(scope["headers"])
    is_page = scope["method"] == "GET" and b"text/html" in headers.get(b"accept", b"")
    return f"/login?next={quote(scope['path'])}".encode() if is_page else None

"""Sessions: a signed cookie of our own, and the token that every changing request carries.

Nothing of a session is in the database but its key and the person's `epoch`: sessions survive
restarts, several processes share them, and one more `epoch` ends all of a person's at once.
"""

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from itsdangerous import BadData, URLSafeSerializer
from sqlalchemy import Connection, insert, select

from labeling_app.store.schema import settings

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.responses import Response

COOKIE = "rlhf_session"
MAX_AGE = 14 * 86400  # seconds without a visit
RENEW_AFTER = 86400
_MAX_LENGTH = 512  # characters of a cookie; ours have about 120
_SKEW = 300  # seconds that the clocks of two processes may differ by


@dataclass(frozen=True)
class Session:
    """Who a cookie speaks for, if its `epoch` still is that person's: `labeling_app.people.person_of` knows."""

    person_id: int
    epoch: int
    id: str  # of this login; the CSRF token is bound to it
    issued: int  # seconds since 1970; moves with each renewal


def signing_key(connection: Connection) -> str:
    """The store's key for cookies and tokens, made at its first use. A write: `store.write(signing_key)`."""
    there = connection.execute(select(settings.c.value).where(settings.c.name == "signing_key")).scalar()
    if there is None:
        there = secrets.token_urlsafe(32)
        connection.execute(insert(settings).values(name="signing_key", value=there))
    return there


class Sessions:
    """Makes and reads cookies and CSRF tokens; touches no database.

    Args:
        key: `store.write(signing_key)`.
        trust_proxy: believe the last `X-Forwarded-Proto` and `X-Forwarded-For`. Only where a proxy of
            one's own sets both on every request: anybody else can write them too.
    """

    def __init__(self, key: str, trust_proxy: bool = False) -> None:
        self._serializer = URLSafeSerializer(
            key, salt="rlhf.session", signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256}
        )
        self._csrf_key = hmac.digest(key.encode(), b"rlhf.csrf", "sha256")
        self.trust_proxy = trust_proxy

    def start(self, person_id: int, epoch: int, now: float) -> Session:
        """A new session, with an id that nobody had before."""
        return Session(person_id, epoch, secrets.token_urlsafe(16), int(now))

    def cookie(self, session: Session) -> str:
        """The cookie's value."""
        return self._serializer.dumps([session.person_id, session.epoch, session.id, session.issued])  # pyright: ignore

    def read(self, cookie: str | None, now: float) -> Session | None:
        """The session of a cookie that we signed in the last 14 days, else None."""
        if not cookie or len(cookie) > _MAX_LENGTH or not cookie.isascii():
            return None
        try:
            session = Session(*self._serializer.loads(cookie))
        except (BadData, TypeError):
            return None
        return session if -_SKEW <= now - session.issued <= MAX_AGE else None

    def csrf(self, session: Session) -> str:
        """The token that this session's changing requests carry: HMAC-SHA256 of its id, in hex."""
        return hmac.new(self._csrf_key, session.id.encode(), "sha256").hexdigest()

    def check_csrf(self, token: str | None, session: Session) -> bool:
        """Whether the token is this session's, compared in constant time."""
        return hmac.compare_digest((token or "").encode("utf-8", "replace"), self.csrf(session).encode())

    def set_cookie(self, response: "Response", request: "HTTPConnection", session: Session) -> None:
        """Send the session to the browser; back to us over https only, where it came by https."""
        secure = self.is_https(request)
        value = self.cookie(session)
        response.set_cookie(COOKIE, value, MAX_AGE, path="/", secure=secure, httponly=True, samesite="lax")

    def renew(self, response: "Response", request: "HTTPConnection", session: Session, now: float) -> None:
        """Send the cookie again where it is older than a day: who works every second week stays logged in."""
        if now - session.issued > RENEW_AFTER:
            self.set_cookie(response, request, replace(session, issued=int(now)))

    def clear_cookie(self, response: "Response", request: "HTTPConnection") -> None:
        """Take the cookie back."""
        response.delete_cookie(COOKIE, path="/", secure=self.is_https(request), httponly=True, samesite="lax")

    def is_https(self, request: "HTTPConnection") -> bool:
        """Whether the browser spoke https, to us or to a trusted proxy."""
        return request.url.scheme == "https" or self._forwarded(request, "x-forwarded-proto") == "https"

    def address(self, request: "HTTPConnection") -> str:
        """Where a request came from, for counting: an IPv4 address or an IPv6 /64, which is one customer's."""
        host = self._forwarded(request, "x-forwarded-for") or (request.client.host if request.client else "")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host[:64] or "unknown"
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
        return str(address)

    def _forwarded(self, request: "HTTPConnection", header: str) -> str:
        """What our own proxy wrote: the last value, as those before it came with the request."""
        values = request.headers.getlist(header) if self.trust_proxy else []
        return ",".join(values).rpartition(",")[2].strip().lower()

"""Passwords: which are taken, and how they are kept (argon2id)."""

import functools
import itertools
import threading
import unicodedata
from typing import TYPE_CHECKING

from labeling_app.answer import Refused
from labeling_app.people import name_key

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MIN_PASSWORD, MAX_PASSWORD = 8, 1000
# Each hash takes 12 MiB: however many people log in, the server takes no more.
_ONE_AT_A_TIME = threading.Semaphore()
# Of eight characters and more, those that every list of leaked passwords begins with.
_COMMON = """
    password passw0rd password1 password123 passwort motdepasse contrasena qwertyui qwertyuiop qwerty123 qwertz123
    azertyuiop asdfghjkl asdfasdf 1q2w3e4r 1q2w3e4r5t 1qaz2wsx q1w2e3r4 qazwsxedc zaq12wsx abcd1234 abc12345
    a1b2c3d4 123123123 12341234 11223344 123qweasd 123456789a iloveyou sunshine princess football baseball superman
    batman123 pokemon1 starwars michelle jennifer computer internet whatever trustno1 letmein1 letmein123 welcome1
    welcome123 admin123 administrator changeme changeme123 guest123 test1234 testtest secret123 dragon123 monkey123
    charlie1 liverpool chocolate annotator
"""


@functools.cache
def hasher() -> "PasswordHasher":
    """argon2id with 12 MiB, 6 passes and one lane: about 50 ms here.

    OWASP's password storage cheat sheet asks for 3 passes at 12 MiB, which it holds to be as strong as
    the 46 MiB and one pass beside it. RFC 9106's 64 MiB would be a third of what the whole server may take.
    """
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=6, memory_cost=12 * 1024, parallelism=1)


def check_password(password: str, name: str) -> None:
    """Raises Refused for a password that would be guessed: too short, common, a mere sequence, or the name.

    As NIST SP 800-63B (section 5.1.1.2 of revision 3) asks: length and a list, no rules of composition.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise Refused(f"A password has {MIN_PASSWORD} to {MAX_PASSWORD:,} characters; a few words make a good one.")
    key = name_key(password)
    if name_key(name) in (key, key.rstrip("0123456789")):
        raise Refused("The password is your name. Please choose another one.")
    steps = {ord(after) - ord(before) for before, after in itertools.pairwise(password)}
    if key in _COMMON.split() or steps in ({0}, {1}, {-1}):
        raise Refused("This password is among those that are tried first. A few words make a good one.")


def hash_password(password: str) -> str:
    """The hash to store. Takes long (see `hasher`): not in an event loop, not in a store's job."""
    with _ONE_AT_A_TIME:
        return hasher().hash(_bytes(password))


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether it is the password; for nobody's (None) False, after as much work."""
    from argon2.exceptions import InvalidHashError, VerificationError

    argon2 = hasher()
    if password_hash is None:
        cost = f"m={argon2.memory_cost},t={argon2.time_cost},p={argon2.parallelism}"
        # Of the form of a hash, but of no password: 16 bytes of salt and 32 of hash, all zero.
        password_hash = f"$argon2id$v=19${cost}${'A' * 22}${'A' * 43}"
    try:
        with _ONE_AT_A_TIME:
            return argon2.verify(password_hash, _bytes(password))
    except (VerificationError, InvalidHashError):
        return False


def needs_rehash(password_hash: str) -> bool:
    """Whether it was made with other parameters than today's."""
    return hasher().check_needs_rehash(password_hash)


def _bytes(password: str) -> bytes:
    # NFKC, as NIST asks: keyboards of different machines write the same letters differently.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")

"""Who may ask: bearer tokens, TLS, and the rule that a server without them stays on loopback.

    openssl rand -hex 32 > token                                             # give this to the client
    echo "radiology $(tr -d '\\n' < token | sha256sum | cut -d' ' -f1)" >> tokens   # and this to the server

The server knows hashes only. Tokens are 256 random bits, so a plain sha256 is enough: there is nothing to guess.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from covidnet.errors import UsageError
from serving.errors import Unauthenticated

_LINE = re.compile(r"([\w.-]{1,64})\s+([0-9a-f]{64})")
# What probes ask; says nothing but that the server is there.
OPEN_ROUTES = frozenset({"/v2/health/live", "/v2/health/ready"})
OPEN_METHODS = frozenset({"ServerLive", "ServerReady", "ModelReady"})


@dataclass(frozen=True, slots=True)
class Tls:
    """A server certificate.

    Args:
        certificate: PEM, the chain.
        key: PEM, not encrypted.
    """

    certificate: Path
    key: Path


class Access:
    """Recognises clients.

    Args:
        tokens: sha256 by name; without any everyone may ask.
        behind_gateway: every request comes from the gateway's address, which therefore is no client.
    """

    def __init__(self, tokens: Mapping[str, bytes], *, behind_gateway: bool = False) -> None:
        self._tokens = dict(tokens)
        self._by_address = not behind_gateway

    def client(self, authorization: str | None, address: str) -> str | None:
        """The client's name for limits: its token's, else its address, or None where that tells no one from another.

        That is so behind a gateway, and on loopback, where all programs of this machine have the same.

        Args:
            authorization: the header, ``Bearer TOKEN``.
            address: of the peer.

        Raises:
            Unauthenticated: tokens are asked for, and this is none of them.
        """
        if not self._tokens:
            return f"address {address}" if self._by_address and not _is_loopback(address) else None
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        # every hash is compared, in constant time, so that the time of an answer tells nothing
        found = [name for name, known in self._tokens.items() if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not found:
            raise Unauthenticated("expected the header Authorization: Bearer TOKEN, with a token of this server")
        return f"token {found[0]}"


def read_tokens(path: Path) -> dict[str, bytes]:
    """Hashes by name, from lines of a name and the sha256 of its token.

    Raises:
        UsageError: no such file, no token in it, or a line of another form, which is named by its number only.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path}: expected a readable text file of tokens; see `docs/serving.md`") from None
    tokens: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in tokens:
            raise UsageError(f"{path} line {number}: expected a new name, a space and the sha256 of its token in hex")
        tokens[match[1]] = bytes.fromhex(match[2])
    if not tokens:
        raise UsageError(f"{path}: expected at least one line of a name and the sha256 of its token")
    return tokens


def check_exposure(host: str, *, protected: bool, behind_gateway: bool) -> None:
    """Refuse to listen beyond this machine unprotected.

    Args:
        host: address to listen on.
        protected: both tokens and TLS are there.
        behind_gateway: the operator says that a gateway has them.

    Raises:
        UsageError: naming the ways out.
    """
    if protected or behind_gateway or _is_loopback(host):
        return
    raise UsageError(
        f"--host {host} is reachable from other machines: give --tokens, --tls-cert and --tls-key; or, where a gateway "
        "in front of the server has both, --behind-gateway"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""What operators and researchers can ask of a coordinator: over its socket, and, with a certificate, on its port.

Which roles may ask is said here alone; a Unix socket asks as an operator. What is somebody's own, as stopping a study that
they started, is held against the store by the coordinator.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from freehold.wire import admin
from freehold.wire.client import Connection
from freehold.wire.messages import Message, Role, decode
from freehold.wire.routes import Field, Route

M = TypeVar("M", bound=Message)

PREFIX: Final = "/v1/admin"
"""On the port; the socket has the same paths with /v1 in its place."""

_ALL: Final[tuple[Role, ...]] = ("operator", "researcher")
_OPERATORS: Final[tuple[Role, ...]] = ("operator",)

StudyName = Annotated[
    str, msgspec.Meta(min_length=1, max_length=100, description="A study's name, or its plan's digest or the beginning of it.")
]

STATUS: Final = Route(
    method="GET", path=f"{PREFIX}/status", summary="Nodes, studies and refusals.", reply=admin.Status, roles=_ALL
)
TOKENS: Final = Route(
    method="GET", path=f"{PREFIX}/tokens", summary="Tokens without their secrets.", reply=admin.Tokens, roles=_OPERATORS
)
CREATE_TOKEN: Final = Route(
    method="POST",
    path=f"{PREFIX}/tokens",
    summary="Make a join token.",
    request=admin.TokenRequest,
    reply=admin.TokenMade,
    roles=_OPERATORS,
    repeatable=False,
)
REVOKE_TOKEN: Final = Route(
    method="POST",
    path=f"{PREFIX}/tokens/revoke",
    summary="Withdraw a join token.",
    request=admin.Subject,
    reply=admin.Done,
    roles=_OPERATORS,
)
DENIED: Final = Route(
    method="GET",
    path=f"{PREFIX}/denied",
    summary="The deny list: who is refused, since when and why.",
    reply=admin.Denials,
    roles=_OPERATORS,
)
DENY: Final = Route(
    method="POST",
    path=f"{PREFIX}/deny",
    summary="Refuse a serial or an identity from now on.",
    request=admin.Denial,
    reply=admin.Done,
    roles=_OPERATORS,
)
ALLOW: Final = Route(
    method="POST",
    path=f"{PREFIX}/allow",
    summary="Take it off the deny list.",
    request=admin.Subject,
    reply=admin.Done,
    roles=_OPERATORS,
    repeatable=False,
)
STUDIES: Final = Route(method="GET", path=f"{PREFIX}/studies", summary="All studies.", reply=admin.Studies, roles=_ALL)
START_STUDY: Final = Route(
    method="POST",
    path=f"{PREFIX}/studies",
    summary="Start a study; once more changes nothing.",
    request=admin.StudyRequest,
    reply=admin.StudyStarted,
    roles=_ALL,
)
STOP_STUDY: Final = Route(
    method="POST",
    path=f"{PREFIX}/studies/stop",
    summary="End a study; a researcher: one of their own.",
    request=admin.Subject,
    reply=admin.Done,
    roles=_ALL,
)
RESULTS: Final = Route(
    method="GET",
    path=f"{PREFIX}/studies/{{study}}",
    summary="What is known of a study.",
    reply=admin.Results,
    fields=(Field("study", StudyName),),
    roles=_ALL,
)

ADMIN_ROUTES: Final = (
    STATUS,
    TOKENS,
    CREATE_TOKEN,
    REVOKE_TOKEN,
    DENIED,
    DENY,
    ALLOW,
    STUDIES,
    START_STUDY,
    STOP_STUDY,
    RESULTS,
)


def on_socket(route: Route) -> str:
    """The path of a route on the coordinator's Unix socket."""
    return "/v1" + route.path.removeprefix(PREFIX)


class RemoteAdmin:
    """Asks a coordinator over its port, with a person's certificate. The paths are those of its socket.

    No connection stays open between two questions.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, route: str, kind: type[M]) -> M:
        """See Administrator."""
        try:
            return decode(self._connection.get(_on_port(route)), kind)
        finally:
            self._connection.close()

    def post(self, route: str, message: Message, kind: type[M]) -> M:
        """See Administrator. Where the connection was cut, what would count twice is not sent again."""
        path = _on_port(route)
        repeatable = next(r.repeatable for r in ADMIN_ROUTES if (r.method, r.path) == ("POST", path))
        try:
            return self._connection.post(path, message, kind, repeatable=repeatable)
        finally:
            self._connection.close()


def _on_port(path: str) -> str:
    return PREFIX + path.removeprefix("/v1")

"""Who may ask what: the whole table, so that no route is opened to a role by accident."""

from __future__ import annotations

import pytest

from freehold.coordinator.administration import OPERATOR_HERE, Administration, Asker
from freehold.errors import NotAllowed
from freehold.wire.adminroutes import ADMIN_ROUTES, on_socket
from freehold.wire.routes import ROUTES, Route

RESEARCHER = {
    ("GET", "/v1/admin/status"),
    ("GET", "/v1/admin/studies"),
    ("POST", "/v1/admin/studies"),
    ("POST", "/v1/admin/studies/stop"),
    ("GET", "/v1/admin/studies/{study}"),
}


@pytest.mark.parametrize("route", ADMIN_ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_an_operator_may_everything_and_a_researcher_what_is_listed(route: Route) -> None:
    OPERATOR_HERE.check(route)
    Asker(role="operator", name="olga").check(route)
    carol = Asker(role="researcher", name="carol")
    if (route.method, route.path) in RESEARCHER:
        carol.check(route)
    else:
        with pytest.raises(NotAllowed, match="researcher/carol may not"):
            carol.check(route)
    assert "node" not in route.roles
    with pytest.raises(NotAllowed):
        Asker(role="node", name="alice").check(route)


def test_every_route_is_answered_and_none_is_both() -> None:
    answers = Administration.__new__(Administration).answers()
    assert list(answers) == list(ADMIN_ROUTES)
    assert not {(r.method, r.path) for r in ROUTES} & {(r.method, r.path) for r in ADMIN_ROUTES}
    assert on_socket(ADMIN_ROUTES[0]) == "/v1/status"


@pytest.mark.parametrize("starter", ["operator", "operator/olga", "researcher/dora", "researcher/caro"])
def test_a_researcher_owns_what_they_started_and_nothing_else(starter: str) -> None:
    carol = Asker(role="researcher", name="carol")
    carol.check_own("researcher/carol")
    with pytest.raises(NotAllowed, match=f"{starter} started this study"):
        carol.check_own(starter)
    OPERATOR_HERE.check_own(starter)
    Asker(role="operator", name="oscar").check_own(starter)

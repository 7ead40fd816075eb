"""Where gloo would listen: a host whose own name leads to itself is told so before it meets the others."""

from __future__ import annotations

import socket

import pytest

from flexiclip.errors import UserError
from flexiclip.train.ranks import check_address


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A host of that name; addresses resolve to themselves, and localhost to loopback, on every machine."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: request.param)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("localhost", "this host's name localhost resolves to 127.0.0.1"),
        ("127.0.1.1", "this host's name 127.0.1.1 resolves to 127.0.1.1"),
        ("::1", "this host's name ::1 resolves to ::1"),
        ("no such host", "this host's name no such host does not resolve"),
    ],
    indirect=["named"],
)
def test_check_address_refuses_a_name_that_leads_to_itself(named: None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        check_address()
    assert str(caught.value).startswith(said)
    assert "set GLOO_SOCKET_IFNAME" in str(caught.value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    check_address()


@pytest.mark.parametrize("named", ["10.1.2.3", "fd00::1"], indirect=True)
def test_check_address_lets_a_name_pass_that_others_can_reach(named: None) -> None:
    check_address()

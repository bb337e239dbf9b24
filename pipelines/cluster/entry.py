"""Whether a Ray cluster lets this process in, found out by one question instead of by the time for which Ray tries.

A cluster wants a token, or none (RAY_AUTH_MODE). Ray writes one, ~/.ray/auth_token, when it first starts a session of this
machine's own; a cluster that `ray start` begins afterwards wants it. A process that joins by an address shows no token unless
RAY_AUTH_MODE=token says so: a token goes to no address that the user has not meant it for. The cluster that `ray start` has
begun on this machine is shown it.
"""

from __future__ import annotations

import os

import grpc
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._raylet import (  # pyright: ignore[reportAttributeAccessIssue]
    AuthenticationMode,  # pyright: ignore[reportAttributeAccessIssue]
    AuthenticationTokenLoader,  # pyright: ignore[reportAttributeAccessIssue]
    get_authentication_mode,  # pyright: ignore[reportAttributeAccessIssue]
)

__all__ = ["refusal", "show_token"]

QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What a Ray process asks first; it takes an empty message."""
FILE = "~/.ray/auth_token"
ANOTHER = (
    f"copy the {FILE} of the machine where it was begun here and put RAY_AUTH_MODE=token in front of the command, or begin the "
    "cluster again without tokens, by RAY_AUTH_MODE=disabled in front of `ray start`"
)


def show_token() -> None:
    """From here on this process shows its token, where it has one and RAY_AUTH_MODE says nothing else."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def refusal(address: str, seconds: float) -> str:
    """Why a cluster would not let this process in, with the remedy; '' where it would, or where it cannot be asked.

    Args:
        address: host:port of the cluster; one of ray:// is not asked.
        seconds: How long an answer is waited for.
    """
    if "://" in address or os.environ.get("RAY_USE_TLS", "0") != "0":
        return ""
    loader, found = AuthenticationTokenLoader.instance(), _answer(address, {}, seconds)
    if found == grpc.StatusCode.UNIMPLEMENTED:
        return (
            "what answers there is no Ray cluster; give the address that `ray start` printed, as a rule with port 6379"
        )
    if found == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"it takes connections and gives no answer for {seconds:g} s; `ray status` on its machine says how it is"
    if found != grpc.StatusCode.UNAUTHENTICATED:
        return ""
    here = f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'not set')}, Ray {ray.__version__}"
    if not loader.has_token(ignore_auth_mode=True):
        return f"it wants a token, and none is here ({here}): {ANOTHER}"
    if get_authentication_mode() != AuthenticationMode.TOKEN:
        return (
            f"it wants a token, and the one that is here is not shown ({here}): put RAY_AUTH_MODE=token in front of the "
            "command, or begin the cluster again without tokens, by RAY_AUTH_MODE=disabled in front of `ray start`"
        )
    if _answer(address, loader.get_token_for_http_header(), seconds) == grpc.StatusCode.UNAUTHENTICATED:
        return f"it wants another token than the one that is here ({here}): {ANOTHER}"
    return ""


def _answer(address: str, headers: dict[str, str], seconds: float) -> grpc.StatusCode:
    """The status of the answer to a cluster's first question."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(QUESTION, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=seconds, metadata=tuple((name.lower(), value) for name, value in headers.items()))
        except grpc.RpcError as error:
            return error.code()  # pyright: ignore[reportAttributeAccessIssue]
    return grpc.StatusCode.OK

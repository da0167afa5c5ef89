"""Authenticates the requests of Schemathesis, so that no request ends the session of the others.

Almost every request carries the token of the main account. The operations in ENDS_A_SESSION would
end its session or change its password, and all later requests would only test 401. So each of their
requests gets a session of its own by a login of a spare account, and the secrets of this account
(password, session id, refresh token), so that it can succeed too. check_schemathesis.py checks that
the main account's session is still valid at the end.
"""

import itertools
import json
import re
from pathlib import Path

import requests
import schemathesis
from schemathesis.specs.openapi.checks import ParameterLocation

RUN = Path("target/conformance/run")
ENDS_A_SESSION = {
    "DELETE /sessions",
    "DELETE /sessions/current",
    "DELETE /sessions/{id}",
    "DELETE /users/me",
    "PATCH /users/me",
    "POST /sessions",
    "POST /sessions/refresh",
}
URL = (RUN / "url").read_text().strip()
MAIN = json.loads((RUN / "main.jsonl").read_text())
SPARES = [json.loads(line) for line in (RUN / "spares.jsonl").read_text().splitlines()]
turns = itertools.count()
# The chats that the other requests use, and the chats that may be removed. The dictionaries are not
# enough to separate them, since Schemathesis also takes ids from answers.
KEPT_CHATS = set(re.findall(r'"(.+)"', (RUN / "chats.dict").read_text()))
DOOMED_CHATS = itertools.cycle(re.findall(r'"(.+)"', (RUN / "doomed-chats.dict").read_text()))


def label(operation) -> str:
    """The operation's name as in ENDS_A_SESSION, with `{id}` for each parameter of the path."""
    return re.sub(r"\{\w+\}", "{id}", operation.label)


def new_session() -> dict:
    """Logs a spare account in. Skips accounts that an earlier request removed."""
    while SPARES:
        spare = SPARES[0]
        credentials = {"login": spare["login"], "password": spare["password"]}
        answer = requests.post(f"{URL}/sessions", json=credentials, timeout=10)
        if answer.status_code == 201:
            return answer.json() | credentials
        if answer.status_code != 401:
            raise RuntimeError(f"login of {spare['login']}: {answer.status_code} {answer.text}")
        SPARES.pop(0)
    raise RuntimeError("no spare account is left: make more of them in run.sh")


def spare_chats(operation: str, parameters: dict) -> dict:
    """Replaces a kept chat by a doomed one if the main account would remove or leave it."""
    removes = operation == "DELETE /chats/{id}"
    is_self = parameters.get("user_id") in ("me", MAIN["user_id"])
    leaves = operation == "DELETE /chats/{id}/members/{id}" and is_self
    if not (removes or leaves):
        return parameters
    return {
        name: next(DOOMED_CHATS) if value in KEPT_CHATS else value
        for name, value in parameters.items()
    }


def own_values(operation: str, session: dict, body: dict) -> dict:
    """The secrets of the account, for the fields that the body has."""
    if operation == "PATCH /users/me":
        return {"current_password": session["password"]}
    return {name: session[name] for name in ("login", "password", "refresh_token") if name in body}


@schemathesis.auth(refresh_interval=None)
class Session:
    def get(self, case, context):
        if label(context.operation) in ENDS_A_SESSION:
            return new_session()
        return MAIN

    def set(self, case, session, context):
        case.headers["Authorization"] = f"Bearer {session['token']}"
        if session is MAIN and case.path_parameters:
            case.path_parameters = spare_chats(label(context.operation), case.path_parameters)
        # Every second request keeps its random values, so that wrong passwords and foreign ids are
        # tested too.
        if session is MAIN or next(turns) % 2:
            return
        operation, meta = label(context.operation), case.meta
        if operation == "DELETE /sessions/{id}" and not meta.is_negative_at(ParameterLocation.PATH):
            case.path_parameters = dict.fromkeys(case.path_parameters, session["session"]["id"])
        if isinstance(case.body, dict) and not meta.is_negative_at(ParameterLocation.BODY):
            case.body = case.body | own_values(operation, session, case.body)

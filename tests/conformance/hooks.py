"""Authenticates the requests of Schemathesis, so that no request ends the session that the others use.

Almost every request carries the token of the main account. The operations in ENDS_A_SESSION would sooner or later kill
it, or change its password, and all requests after that would test nothing but 401. Each of their requests gets a session of its own, by a new
login of a spare account, and the values that only its owner can know (password, session id, refresh token), so that it
can succeed as well. check_schemathesis.py sees to it that the main account's session is alive at the end.
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
# The chats that everything else uses, and those that may go. The dictionaries alone don't keep them apart: Schemathesis
# also takes ids from answers it got.
KEPT_CHATS = set(re.findall(r'"(.+)"', (RUN / "chats.dict").read_text()))
DOOMED_CHATS = itertools.cycle(re.findall(r'"(.+)"', (RUN / "doomed-chats.dict").read_text()))


def label(operation) -> str:
    """The operation's name as in ENDS_A_SESSION, whatever the document calls the parameter in the path."""
    return re.sub(r"\{\w+\}", "{id}", operation.label)


def new_session() -> dict:
    """Logs a spare account in. An account that was removed by an earlier request is left out from then on."""
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
    """Another chat, where the main account would remove or leave one of those that everything else uses."""
    leaves = parameters.get("user_id") in ("me", MAIN["user_id"])
    if operation == "DELETE /chats/{id}" or (operation == "DELETE /chats/{id}/members/{id}" and leaves):
        return {name: next(DOOMED_CHATS) if value in KEPT_CHATS else value for name, value in parameters.items()}
    return parameters


def own_values(operation: str, session: dict, body: dict) -> dict:
    """What only the owner of the account can know, for the fields that the body has."""
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
        # Every other request keeps its random values: a wrong password or a foreign id must be refused.
        if session is MAIN or next(turns) % 2:
            return
        if label(context.operation) == "DELETE /sessions/{id}" and not case.meta.is_negative_at(ParameterLocation.PATH):
            case.path_parameters = dict.fromkeys(case.path_parameters, session["session"]["id"])
        if isinstance(case.body, dict) and not case.meta.is_negative_at(ParameterLocation.BODY):
            case.body = case.body | own_values(label(context.operation), session, case.body)

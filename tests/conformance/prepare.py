"""Creates chats with messages, and writes their ids as dictionaries for schemathesis.toml.

Usage: prepare.py, from the project's root, while the server runs, after run.sh has filled
target/conformance/run.
"""

import json
from pathlib import Path

import requests

RUN = Path("target/conformance/run")
# At least as many as the dictionary of message ids in schemathesis.toml.
MESSAGES = 20
DOOMED_CHATS = 30
# Logins that no account has.
LOGINS = 300


def write_dictionary(name: str, values: list[str]) -> None:
    (RUN / f"{name}.dict").write_text("".join(f'"{value}"\n' for value in values))


def main() -> None:
    url = (RUN / "url").read_text().strip()
    token = json.loads((RUN / "main.jsonl").read_text())["token"]
    peers = [json.loads(line)["user_id"] for line in (RUN / "peers.jsonl").read_text().splitlines()]
    api = requests.Session()
    api.headers["Authorization"] = f"Bearer {token}"

    def post(path: str, body: dict) -> dict:
        answer = api.post(url + path, json=body, timeout=10)
        if not answer.ok:
            raise SystemExit(f"POST {path}: {answer.status_code} {answer.text}")
        return answer.json()

    # Half of the peers are in no chat, so that requests can add them.
    members = peers[: len(peers) // 2]
    chats = [
        post("/chats", {"kind": "self"})["id"],
        post("/chats", {"kind": "private", "member_ids": members[:1]})["id"],
        post("/chats", {"kind": "group", "name": "Conformance", "member_ids": members})["id"],
        post("/chats", {"kind": "channel", "name": "Conformance", "member_ids": members})["id"],
    ]
    for chat in chats:
        for number in range(1, MESSAGES + 1):
            post(f"/chats/{chat}/messages", {"text": f"message {number}"})

    doomed = [
        post("/chats", {"kind": "group", "name": f"Doomed {number}"})["id"]
        for number in range(DOOMED_CHATS)
    ]

    write_dictionary("chats", chats)
    write_dictionary("doomed-chats", doomed)
    write_dictionary("users", peers)
    write_dictionary("logins", [f"newcomer{number}" for number in range(LOGINS)])
    write_dictionary("passwords", ["correct horse battery staple", "ein guter Satz"])
    write_dictionary("invites", [(RUN / "invite").read_text().strip()])


if __name__ == "__main__":
    main()

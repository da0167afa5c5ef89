"""Reads the report of Schemathesis and prints one line of counts.

Usage: check_schemathesis.py, from the project's root, while the server of run.sh still runs. Exits
with 1 if the run tested too little. Schemathesis itself reports what the requests found.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import requests

RUN = Path("target/conformance/run")
CASES_MIN = 2000
# Operations that can't succeed for a plain HTTP client.
NEVER_SUCCEED = {
    "GET /ws",  # answers 101 to a WebSocket client: Autobahn and tests/it/gateway test it
}


def main() -> int:
    statuses: dict[str, Counter] = defaultdict(Counter)
    checks = Counter()
    with (RUN / "schemathesis.ndjson").open(encoding="utf-8") as report:
        for line in report:
            recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
            for case_id, case in recorder.get("cases", {}).items():
                response = recorder["interactions"].get(case_id, {}).get("response")
                if response:
                    operation = f"{case['value']['method']} {case['value']['path']}"
                    statuses[operation][response["status_code"]] += 1
                checks.update(check["status"] for check in recorder["checks"].get(case_id, []))

    cases = sum(sum(counts.values()) for counts in statuses.values())
    # Schemathesis also requests undocumented methods, which only answer 405.
    documented = {
        operation: counts for operation, counts in statuses.items() if set(counts) != {405}
    }
    print(
        f"Schemathesis: {cases} requests to {len(documented)} operations, "
        f"{checks['success']} checks passed, {checks['failure']} failed"
    )

    complaints = []
    if cases < CASES_MIN:
        complaints.append(f"expected at least {CASES_MIN} requests")
    for operation, counts in sorted(documented.items()):
        if operation not in NEVER_SUCCEED and not any(200 <= status < 400 for status in counts):
            complaints.append(f"{operation} never succeeded: {dict(counts)}")
    token = json.loads((RUN / "main.jsonl").read_text())["token"]
    url = (RUN / "url").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    answer = requests.get(f"{url}/sessions/current", headers=headers, timeout=10)
    if answer.status_code != 200:
        complaints.append(
            f"the main account's session has ended: {answer.status_code} "
            "(see ENDS_A_SESSION in hooks.py)"
        )
    for complaint in complaints:
        print(f"  {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

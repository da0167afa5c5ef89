"""Reads the report of Schemathesis, prints one line of counts, and exits 1 where the run tested less than it should.

Usage: check_schemathesis.py, from the project's root, while the server of run.sh still runs. What the requests found is
Schemathesis's own verdict; this looks for a run that found nothing because it reached nothing.
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
    "GET /ws",  # answers 101 to a WebSocket client: Autobahn's part, and that of tests/it/gateway
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
    # A method that a path does not document is asked, too, and answers 405 alone.
    documented = {operation: counts for operation, counts in statuses.items() if set(counts) != {405}}
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
    answer = requests.get(f"{url}/sessions/current", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    if answer.status_code != 200:
        complaints.append(f"the main account's session died: {answer.status_code} (see ENDS_A_SESSION in hooks.py)")
    for complaint in complaints:
        print(f"  {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

"""Reads the report of Autobahn|Testsuite and prints one line of counts.

Exits with 1 unless every case conforms.
Usage: check_autobahn.py target/conformance/autobahn-report/index.json
"""

import json
import sys
from collections import Counter

CONFORMING = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}
# The suite has 301 cases without compression. A run that left cases out fails.
CASES_MIN = 300


def case_number(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


def main(path: str) -> int:
    with open(path, encoding="utf-8") as file:
        # The report has no entry for a server that could not be reached.
        results = json.load(file).get("starling", {})
    # A case has one verdict for the messages, and one for the close.
    verdicts = {
        case: (results[case]["behavior"], results[case]["behaviorClose"])
        for case in sorted(results, key=case_number)
    }
    failed = {case for case, both in verdicts.items() if not set(both) <= CONFORMING}
    for case, (behavior, close) in verdicts.items():
        if case in failed or "NON-STRICT" in (behavior, close):
            print(f"  case {case}: {behavior}, close {close}")
    counts = Counter(behavior for behavior, _ in verdicts.values())
    shown = ", ".join(f"{count} {behavior}" for behavior, count in sorted(counts.items()))
    print(f"Autobahn|Testsuite: {len(verdicts)} cases: {shown}; {len(failed)} failed")
    if len(verdicts) < CASES_MIN:
        print(f"Autobahn|Testsuite: expected at least {CASES_MIN} cases")
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

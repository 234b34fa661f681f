"""A stand-in for MinIO's `mc`, as far as setup.sh uses it.

Its state is a JSON file, MC_STATE; each call adds a line to MC_CALLS. It follows mc in what makes a script go wrong:
`ready` says what is wrong and ends only when MinIO is healthy; `user add` and `policy create` overwrite; `policy
attach` fails for a policy or user that is not there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

path = Path(os.environ["MC_STATE"])
state = json.loads(path.read_text())
with Path(os.environ["MC_CALLS"]).open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\n")
if state["not_ready_for"] > 0 and sys.argv[1] != "ready":
    sys.exit("mc: <ERROR> connect: connection refused.")
# mc reads the alias `store` from a variable of this very name, and asks whether MinIO is ready without credentials.
if os.environ["MC_HOST_store"] != state["host"] and sys.argv[1] != "ready":  # noqa: SIM112
    sys.exit("mc: <ERROR> Access Denied.")


def describe(user: str) -> str:
    shown = {"status": "success", "accessKey": user}
    if state["users"][user]["policies"]:
        shown["policyName"] = ",".join(state["users"][user]["policies"])
    return json.dumps(shown | {"userStatus": "enabled"}, separators=(",", ":"))


match sys.argv[1:]:
    case ["ready", "store"]:
        for _ in range(state["not_ready_for"]):  # five seconds each
            print("The cluster 'store' is unreachable: connect: connection refused")
        state["not_ready_for"] = 0
        print("The cluster 'store' is ready")
    case ["mb", "--ignore-existing", target]:
        state["buckets"] = sorted({*state["buckets"], target.removeprefix("store/")})
    case ["version", "enable", "--excluded-prefixes", prefixes, target]:
        bucket = target.removeprefix("store/")
        if bucket not in state["buckets"]:
            sys.exit("mc: <ERROR> Cannot enable versioning. The specified bucket does not exist.")
        state["versioned"][bucket] = prefixes.split(",")
    case ["admin", "policy", "create", "store", name, file]:
        state["policies"][name] = json.loads(Path(file).read_text())
    case ["admin", "policy", "attach", "store", name, "--user", user]:
        if name not in state["policies"]:
            sys.exit("mc: <ERROR> Unable to make user/group policy association.")
        attached = state["users"][user]["policies"]
        attached += [name] if name not in attached else []
    case ["admin", "user", "add", "store"]:
        access, secret = sys.stdin.read().splitlines()
        state["users"].setdefault(access, {"policies": []})["secret"] = secret
    case ["admin", "user", "list", "store", "--json"]:
        for user in state["users"]:
            print(describe(user))
    case ["admin", "user", "remove", "store", user]:
        del state["users"][user]
    case other:
        sys.exit(f"mc: <ERROR> `{' '.join(other)}` is not a recognized command.")
path.write_text(json.dumps(state))

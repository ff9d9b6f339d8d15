#!/bin/sh
# Several candidates, each tried in a child of one prepared VM: the children share its memory and disk until they write.
set -eu
vm=$(microvm create -q --name "best-$$")
trap 'microvm rm "$vm" > /dev/null' EXIT
# What all candidates need is loaded once, in the parent.
microvm exec "$vm" sh -c 'seq 1 1000 > /root/data'

cat > candidates <<'CANDIDATES'
awk '{ s += $1 } END { print s }' /root/data
awk '{ s += $1 * $1 } END { print s }' /root/data
awk '{ s += $1 % 7 } END { print s }' /root/data
CANDIDATES

microvm --output json fork "$vm" --commands candidates > children.json
python3 - <<'PYTHON'
import json

children = json.load(open("children.json"))
best = max(children, key=lambda child: int(child["stdout"]))
print(f"candidate {best['number']} of {len(children)} wins with {best['stdout'].strip()}")
PYTHON

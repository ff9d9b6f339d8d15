#!/bin/sh
# A VM from its creation to its end: commands, files, a snapshot and the way back to it.
set -eu
vm=$(microvm create -q --name "basic-$$")
trap 'microvm rm "$vm" > /dev/null' EXIT

microvm exec "$vm" sh -c 'echo first > /root/notes'
microvm snapshot create "$vm" --name "basic-$$-ready" > /dev/null

printf 'second\n' > notes
microvm cp notes "$vm:/root/notes"
echo "changed:   $(microvm exec "$vm" cat /root/notes)"

microvm rollback "$vm" "basic-$$-ready" > /dev/null
echo "rolled back: $(microvm exec "$vm" cat /root/notes)"
microvm snapshot rm "basic-$$-ready" > /dev/null

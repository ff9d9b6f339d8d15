#!/bin/sh
# What a newcomer does with the program on a host that has only its packages: newcomer.sh PROGRAM
#
# Kernel and image are made once and then stay. The server is ended again.
set -eu
microvm=$1
folder=$(mktemp -d)
mkfifo "$folder/ready"
"$microvm" serve --background > "$folder/ready" &
server=$!
trap 'kill "$server"; wait "$server" || true; rm -r "$folder"' EXIT
# It says so when it is ready, and nothing if it has failed.
read -r word < "$folder/ready"
[ "$word" = ready ]
"$microvm" doctor
"$microvm" kernel ls --output json | grep -q '"distribution"' || "$microvm" kernel build --distribution
"$microvm" image inspect debian-python > /dev/null 2>&1 || "$microvm" image build debian-python
for kernel in distribution default; do
    [ "$("$microvm" run --kernel "$kernel" -- python3 -c 'print(6*7)')" = 42 ]
done

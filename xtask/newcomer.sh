#!/bin/sh
# What a newcomer does with the program on a host that has only its packages: newcomer.sh PROGRAM
#
# To be started in a mount namespace of its own: the server that the first command starts is ended again, and it is known
# by that. Kernel and image are made once and then stay.
set -eu
microvm=$1

end_server() {
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/ns/mnt")" = "$(readlink /proc/self/ns/mnt)" ] || continue
        grep -qzx serve "$process/cmdline" 2> /dev/null || continue
        kill "${process#/proc/}"
        tail --pid="${process#/proc/}" -f /dev/null
    done
}

# Kernel and image come from the package sources of this host.
apt-get -q update
trap end_server EXIT
"$microvm" kernel ls --output json | grep -q '"distribution"' || "$microvm" kernel build --distribution
"$microvm" image inspect debian-python > /dev/null 2>&1 || "$microvm" image build debian-python
"$microvm" doctor
[ "$("$microvm" run -- python3 -c 'print(6*7)')" = 42 ]

#!/bin/sh
# Runs a command in another root: enter.sh ROOT [FOLDER...] -- COMMAND...
#
# Folders of the host are at the same paths there. To be started in a mount namespace of its own
# (`unshare --mount --propagation private`), so that nothing is left mounted. The root becomes that of the namespace,
# since the kernel refuses user namespaces, which VMMs of ordinary users live in, to whoever was put there by chroot.
set -eu
root=$1
shift
mount --bind "$root" "$root"
for folder in /proc /sys /dev; do
    mount --rbind "$folder" "$root$folder"
done
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --rbind "$1" "$root$1"
    shift
done
shift
# Names are resolved as the host does it.
[ -e "$root/etc/resolv.conf" ] || : > "$root/etc/resolv.conf"
mount --bind "$(readlink -f /etc/resolv.conf)" "$root/etc/resolv.conf"
cd "$root"
pivot_root . .
umount --lazy .
cd /
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec "$@"

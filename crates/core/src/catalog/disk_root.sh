# Finds the one Linux root on the disk `import` and mounts it read-only. Prints a line for everything that it finds: kind and device.
disk=
for found in /sys/block/*; do
  if [ "$(cat "$found/serial" 2>/dev/null)" = import ]; then disk=${found##*/}; fi
done
if [ -z "$disk" ]; then echo "missing disk"; exit 0; fi
at() { dd if="$1" bs=1 skip="$2" count="$3" 2>/dev/null | od -An -tx1 | tr -d ' \n'; }
# Signatures of what may be on a partition, at their offsets in bytes.
kind() {
  if [ "$(at "$1" 0 6)" = 4c554b53babe ]; then echo luks
  elif [ "$(at "$1" 512 8)" = 4c4142454c4f4e45 ]; then echo lvm
  elif [ "$(at "$1" 4096 4)" = fc4e2ba9 ]; then echo raid
  elif [ "$(at "$1" 3 8)" = 2d4656452d46532d ]; then echo bitlocker
  elif [ "$(at "$1" 3 4)" = 4e544653 ]; then echo ntfs
  elif [ "$(at "$1" 0 4)" = 58465342 ]; then echo xfs
  elif [ "$(at "$1" 65600 8)" = 5f42485266535f4d ]; then echo btrfs
  elif [ "$(at "$1" 1080 2)" = 53ef ]; then echo ext4
  elif [ "$(at "$1" 1024 4)" = e2e1f5e0 ]; then echo erofs
  elif [ "$(at "$1" 82 5)" = 4641543332 ] || [ "$(at "$1" 54 3)" = 464154 ]; then echo fat
  elif [ "$(at "$1" 4086 10)" = 53574150535041434532 ]; then echo swap
  else echo unknown
  fi
}
parts=
for found in "/sys/block/$disk/$disk"*; do
  if [ -e "$found/partition" ]; then parts="$parts ${found##*/}"; fi
done
mkdir -p /run/import || exit 1
root=
for part in ${parts:-$disk}; do
  kind=$(kind "/dev/$part")
  case $kind in
    ext4|erofs)
      file_system=$kind
      if ! mount -t "$kind" -o ro,nosuid,nodev,noexec "/dev/$part" /run/import 2>/run/import.error; then
        kind=unclean
        # The kernel says more than mount does.
        why=$(dmesg 2>/dev/null | sed -n "s/^\[[^]]*\] //; /($part)/p" 2>/dev/null | tail -n 1 2>/dev/null)
        if [ -z "$why" ]; then read -r why </run/import.error; fi
        echo "reason $part: $why"
      else
        if [ -d /run/import/etc ] && { [ -d /run/import/usr ] || [ -d /run/import/bin ]; }; then kind=root; root="$root $part"; type=$file_system; fi
        umount /run/import || exit 1
      fi
      ;;
  esac
  echo "$kind $part"
done
set -- $root
if [ $# = 1 ]; then
  mount -t "$type" -o ro,nosuid,nodev,noexec "/dev/$1" /run/import || exit 1
fi

# Builds one image of two layers, and has every builder of this host write it in every form it knows. $1: an empty directory.
set -e
D=$1; cd "$D"
export CONTAINERS_STORAGE_CONF=$D/storage.conf
cat > storage.conf <<END
[storage]
driver = "vfs"
runroot = "$D/run"
graphroot = "$D/graph"
END
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > policy.json
mkdir -p tree/etc tree/bin tree/empty; echo one > tree/etc/one; echo gone > tree/etc/gone; echo tool > tree/bin/tool; chmod 4755 tree/bin/tool; ln -s one tree/etc/link; ln tree/etc/one tree/etc/hard; chmod 1777 tree/empty; chown 1000:70000 tree/etc/one
b() { buildah --storage-driver vfs "$@"; }
c=$(b from scratch)
m=$(b mount $c); cp -a tree/. $m/; b umount $c >/dev/null
b config --entrypoint '["/bin/tool"]' --cmd 'a b' --user 1000 --env WHO=one --workingdir /etc $c
b commit -q --signature-policy policy.json $c base:1 >/dev/null
c2=$(b from --signature-policy policy.json --pull-never localhost/base:1)
m=$(b mount $c2); rm $m/etc/gone; echo two > $m/etc/two; b umount $c2 >/dev/null
b commit -q --signature-policy policy.json $c2 real:1 >/dev/null
b push -q --signature-policy policy.json real:1 oci:$D/buildah-oci:1
b push -q --signature-policy policy.json real:1 oci-archive:$D/buildah-oci.tar:1
b push -q --signature-policy policy.json real:1 docker-archive:$D/buildah-docker.tar:real:1
podman --storage-driver vfs save -q --format docker-archive -o podman-docker.tar real:1
podman --storage-driver vfs save -q --format oci-archive -o podman-oci.tar real:1
podman --storage-driver vfs save -q --format oci-dir -o podman-oci real:1
podman --storage-driver vfs save -q --format docker-dir -o podman-dir real:1
podman --storage-driver vfs save -q -m -o podman-multi.tar base:1 real:1
s() { skopeo --policy policy.json copy -q "$@"; }
s oci:buildah-oci:1 dir:skopeo-dir
s oci:buildah-oci:1 docker-archive:skopeo-docker.tar:real:1
s oci:buildah-oci:1 oci-archive:skopeo-oci.tar:1
s oci:buildah-oci:1 oci:skopeo-two:v1
s --dest-compress-format zstd oci:buildah-oci:1 oci:skopeo-zstd:1
umoci init --layout umoci; umoci new --image umoci:empty
umoci unpack --image buildah-oci:1 bundle >/dev/null
cp -r buildah-oci umoci-re; umoci repack --image umoci-re:2 bundle >/dev/null

# images.sh FOLDER TOOLS: builds the images that the tests of Kubernetes start, as the OCI archive
# FOLDER/e2e.tar. All of them share one layer: Debian's network programs, agnhost and CoreDNS from
# the folder TOOLS. Only the image of the pause container is its own.
set -e
folder=$1 tools=$2
rm -rf "$folder" && mkdir -p "$folder/oci/blobs/sha256"
root=$folder/root

# mmdebstrap takes the packages from where this machine gets its own. Their scripts do not run.
apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u |
  mmdebstrap --quiet --mode=root --format=directory --variant=extract \
    --include=bash,bind9-dnsutils,bind9-host,coreutils,curl,dash,grep,hostname,iproute2,iptables,iputils-ping,libc-bin,mawk,netcat-openbsd,procps,sed,socat,tar,util-linux,wget \
    --dpkgopt='path-exclude=/usr/share/*' "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$root" -
# The names that the packages' scripts would create.
ln -sf nc.openbsd "$root/bin/nc"
ln -sf mawk "$root/usr/bin/awk"
for program in iptables ip6tables; do
  for what in '' -save -restore; do ln -sf $program-nft$what "$root/usr/sbin/$program$what"; done
done
mkdir -p "$root/tmp" "$root/root" "$root/uploads" "$root/proc" "$root/sys" "$root/dev" "$root/etc"
chmod 1777 "$root/tmp"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
rm -rf "$root"/var/lib/apt "$root"/var/cache
cp "$tools/agnhost" "$tools/coredns" "$tools/regression-issue-74839" "$tools/localhost.crt" "$tools/localhost.key" "$root/"
ln -s agnhost "$root/agnhost-2"

mkdir "$folder/pause"
cc -static -Os -o "$folder/pause/pause" "$(dirname "$0")/pause.c"

blob() { # file: moves it to the blobs, and prints its digest and size
  size=$(stat -c %s "$1") sum=$(sha256sum <"$1") && sum=${sum%% *}
  mv "$1" "$folder/oci/blobs/sha256/$sum" && echo "$sum $size"
}
layer() { # folder: prints the digest and the size of its layer
  tar -C "$1" --owner=0 --group=0 --mtime=@0 --sort=name -cf "$folder/layer" . && blob "$folder/layer"
}
manifests=
image() { # name, layer's digest and size, entry point and command as JSON
  config=$(printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"Entrypoint":%s,"Cmd":%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(dpkg --print-architecture)" "$4" "$5" "$2" >"$folder/config" && blob "$folder/config")
  manifest=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}],"annotations":{"name":"%s"}}' \
    ${config% *} ${config#* } "$2" "$3" "$1" >"$folder/manifest" && blob "$folder/manifest")
  manifests="$manifests${manifests:+,}$(printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}' \
    ${manifest% *} ${manifest#* } "$1" "$1")"
}
small=$(layer "$folder/pause") large=$(layer "$root")
registry=registry.k8s.io
image $registry/pause:3.10.1 ${small% *} ${small#* } '["/pause"]' '[]'
agnhost() { image "$registry/$1" ${large% *} ${large#* } "$2" "$3"; }
agnhost e2e-test-images/agnhost:2.56 '["/agnhost"]' '["pause"]'
agnhost e2e-test-images/jessie-dnsutils:1.7 '[]' '["/bin/sh"]'
agnhost e2e-test-images/busybox:1.37.0-1 '[]' '["/bin/sh"]'
agnhost e2e-test-images/nginx:1.14-4 '["/agnhost"]' '["test-webserver"]'
agnhost e2e-test-images/nginx:1.15-4 '["/agnhost"]' '["test-webserver"]'
agnhost e2e-test-images/regression-issue-74839:1.2 '["/regression-issue-74839"]' '[]'
agnhost build-image/distroless-iptables:v0.7.14 '[]' '["/bin/sh"]'
agnhost coredns/coredns:v1.12.1 '["/coredns"]' '[]'
printf '{"schemaVersion":2,"manifests":[%s]}' "$manifests" >"$folder/oci/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$folder/oci/oci-layout"
tar -C "$folder/oci" -cf "$folder/e2e.tar" oci-layout index.json blobs
rm -rf "$folder/oci" "$folder/root" "$folder/pause"

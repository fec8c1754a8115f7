# Builds the OCI image archive /run/image.tar from /run/rootfs. The image's command sleeps.
set -e
d=$(mktemp -d /run/image.XXXXXX)
mkdir -p $d/oci/blobs/sha256
blob() { s=$(sha256sum <$1); s=${s%% *}; mv $1 $d/oci/blobs/sha256/$s; echo $s; }
tar -C /run/rootfs --owner=0 --group=0 --mtime=@0 --sort=name -cf $d/layer .
ls=$(stat -c %s $d/layer); l=$(blob $d/layer)
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"],"Entrypoint":["/bin/sleep","infinity"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"hand"}]}' "$(dpkg --print-architecture)" $l >$d/config
cs=$(stat -c %s $d/config); c=$(blob $d/config)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' $c $cs $l $ls >$d/manifest
ms=$(stat -c %s $d/manifest); m=$(blob $d/manifest)
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s"}}]}' $m $ms test.local/busybox:1 >$d/oci/index.json
printf '{"imageLayoutVersion":"1.0.0"}' >$d/oci/oci-layout
tar -C $d/oci -cf /run/image.tar oci-layout index.json blobs
rm -r $d

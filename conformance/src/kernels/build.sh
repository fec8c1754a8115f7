# build.sh FOLDER: downloads Debian's kernels and makes an initramfs for each, which mounts this
# machine's files read-only, below changes in memory, and runs FOLDER/guest.sh.
set -e
folder=$(realpath -m "$1") here=$(dirname "$(realpath "$0")")
mkdir -p "$folder"
cp "$here/guest.sh" "$folder"
apt-cache depends linux-image-6.12-amd64 >/dev/null 2>&1 || apt-get -o DPkg::Lock::Timeout=300 update -q
for meta in linux-image-amd64 linux-image-6.12-amd64; do
  package=$(apt-cache depends $meta | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
  kernel=$folder/${meta%-amd64}
  [ "$(cat "$kernel/package" 2>/dev/null)" != "$package" ] || continue
  rm -rf "$kernel" && mkdir -p "$kernel/initramfs/bin" "$kernel/download"
  (cd "$kernel/download" && apt-get download -q "$package" && dpkg-deb -x ./*.deb "$kernel/root")
  release=${package#linux-image-}
  mv "$kernel/root/boot/vmlinuz-$release" "$kernel/vmlinuz"
  mkdir "$kernel/lib" && mv "$kernel/root/lib/modules" "$kernel/lib/"
  rm -rf "$kernel/root" "$kernel/download"
  busybox depmod -b "$kernel" "$release"
  # The modules that mount this machine's files, with what they depend on.
  target=$kernel/initramfs/lib/modules/$release && mkdir -p "$target"
  for module in virtio_pci 9pnet_virtio 9p overlay crc32c_generic; do
    dependencies=$(grep "/$module\.ko" "$kernel/lib/modules/$release/modules.dep") || continue
    for file in $(echo "$dependencies" | tr -d :); do
      mkdir -p "$target/$(dirname "$file")" && cp "$kernel/lib/modules/$release/$file" "$target/$file"
    done
  done
  busybox depmod -b "$kernel/initramfs" "$release"
  cp "$(command -v busybox)" "$kernel/initramfs/bin/"
  install -m 755 "$here/init.sh" "$kernel/initramfs/init"
  (cd "$kernel/initramfs" && find . | busybox cpio -o -H newc | gzip -1 >../initramfs.gz)
  rm -rf "$kernel/initramfs"
  echo "$package" >"$kernel/package"
done

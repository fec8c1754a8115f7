# Mounts the view of the cgroup namespace: its own subtree.
grep -qv '^0::' /proc/self/cgroup || return 0
umount -R /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
while IFS=: read -r _ controllers _; do
  folder=/sys/fs/cgroup/${controllers#name=}
  case $controllers in
    '') folder=/sys/fs/cgroup/unified; mkdir $folder; mount -t cgroup2 cgroup2 $folder ;;
    name=*) mkdir $folder; mount -t cgroup -o none,$controllers cgroup $folder ;;
    *) mkdir $folder; mount -t cgroup -o $controllers cgroup $folder ;;
  esac
done </proc/self/cgroup

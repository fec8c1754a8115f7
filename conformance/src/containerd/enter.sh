# enter.sh NAME COMMAND...: runs COMMAND in new cgroups below the current ones, at the root of a
# cgroup namespace. Mounts every hierarchy again, whether it was mounted or not. /run/cgroups
# lists the cgroups to remove. The mounts are not below /run, which the inner mount namespace
# shares: kubelet uses the first mount of a hierarchy that it finds.
name=$1; shift
# If the only hierarchy is cgroup version 2, it is used as it is.
grep -qv '^0::' /proc/self/cgroup || { touch /run/cgroups; exec "$@"; }
umount -R /sys/fs/cgroup 2>/dev/null
mount -t tmpfs tmpfs /sys/fs/cgroup
while IFS=: read -r _ controllers path; do
  folder=/sys/fs/cgroup/${controllers#name=}
  test "$controllers" || folder=/sys/fs/cgroup/unified
  mkdir $folder
  case $controllers in
    '') mount -t cgroup2 cgroup2 $folder ;;
    name=*) mount -t cgroup -o none,$controllers cgroup $folder ;;
    *) mount -t cgroup -o $controllers cgroup $folder ;;
  esac || { rmdir $folder; continue; }
  own=$folder${path%/}/$name
  mkdir -p $own || continue
  test "$controllers" = cpuset && for key in cpuset.cpus cpuset.mems; do cat $own/../$key >$own/$key; done
  echo $$ >$own/cgroup.procs && echo $own >>/run/cgroups
done </proc/self/cgroup
exec unshare --cgroup "$@"

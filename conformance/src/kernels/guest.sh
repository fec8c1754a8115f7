# Runs in the virtual machine: the tests whose executables are in the folder `tests` beside this file.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
# A node's system has loaded these before pods start.
for module in veth bridge br_netfilter nf_tables nf_conntrack; do modprobe $module; done
ip link set lo up
touch /run/virtual-machine
echo "kernel: $(uname -r)"
result=0
cd "$(dirname "$0")/tests"
for arguments in *.arguments; do
  # shellcheck disable=SC2046
  ./"${arguments%.arguments}" --color=never --test-threads=1 --exact $(cat "$arguments") || result=1
done
echo "guest: $result"
busybox poweroff -f
